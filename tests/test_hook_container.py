"""PML's `HookContainer` and record-keeper take every method of the catalog as it is."""

from types import SimpleNamespace

import pytest

pytest.importorskip("pytorch_metric_learning.trainers", reason="about PML 2: its trainers")

from of_pml import HookContainer, c_f
from record_keeper import RecordKeeper, RecordWriter
from registry import ARGUMENTS

from pml_ext import catalog
from pml_ext.miners import ChainedMiner, KNearestPositiveMiner


def record(folder, loss, miner):
    """What PML's trainers record of a loss and a miner after a step; returns the names of the tables."""
    keeper = RecordKeeper(
        record_writer=RecordWriter(str(folder)), attributes_to_search_for=c_f.list_of_recordable_attributes_list_names()
    )
    trainer = SimpleNamespace(
        iteration=0,
        get_global_iteration=lambda: 0,
        loss_tracker=SimpleNamespace(losses={"total_loss": 1.0}, loss_weights={"metric_loss": 1}),
        loss_funcs={"metric_loss": loss},
        mining_funcs={} if miner is None else {"tuple_miner": miner},
        models={},
        optimizers={},
    )
    HookContainer(keeper, save_models=False).end_of_iteration_hook(trainer)
    keeper.save_records()
    return {path.stem for path in folder.glob("*.csv")}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML 2's trainers show losses
@pytest.mark.parametrize("name", catalog.recipes)
def test_a_method_is_recorded(name, tmp_path):
    recipe = catalog.build(name, **{each: ARGUMENTS[each]() for each in catalog.required(name)})
    tables = record(tmp_path, recipe.loss, recipe.miner)
    assert any(table.startswith(f"metric_loss_{type(recipe.loss).__name__}") for table in tables)


def test_the_miners_of_a_chain_are_recorded_by_their_places(tmp_path):
    chain = ChainedMiner(miners=[KNearestPositiveMiner(k=2), KNearestPositiveMiner(k=1)])
    assert [miner.k for miner in chain.miners] == [2, 1]
    loss = catalog.build("BDWNeighbour").loss
    loss.loss.miner = chain
    tables = record(tmp_path, loss, None)
    assert {f"miner_ChainedMiner__modules_miner{place}_KNearestPositiveMiner" for place in (0, 1)} <= tables


def test_a_miner_that_stands_in_a_chain_twice_stays_there_twice():
    once = KNearestPositiveMiner()
    assert ChainedMiner(miners=[once, once]).miners == (once, once)
