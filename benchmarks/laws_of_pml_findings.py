"""The worst of what the laws find in pytorch-metric-learning, reduced: a title, code that prints, and what is right."""

FINDINGS: list[tuple[str, str, str]] = [
    (
        "One positive and one negative pair cost nothing",
        """
        import torch
        from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss
        x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1])
        one_of_each = tuple(torch.tensor([i]) for i in (0, 1, 0, 2))
        print(ContrastiveLoss()(x, y, one_of_each).item(), MultiSimilarityLoss()(x, y, one_of_each).item())
        """,
        "The positive pair is sqrt(2) apart, the negative one 0.894: the contrastive loss is 1.414 + 0.106 = 1.520. "
        "`GenericPairLoss` takes a single pair of each kind for none (`one_pair_of_each_kind_is_enough`).",
    ),
    (
        "The order of the references changes the lifted structure loss",
        """
        import torch
        from pytorch_metric_learning.losses import LiftedStructureLoss
        x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        refs, labels = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
        for order in ([0, 1, 2], [1, 0, 2]):
            print(LiftedStructureLoss()(x, y, ref_emb=refs[order], ref_labels=labels[order]).item())
        """,
        "References are a set: both must be equal. The index of a positive, a reference, is looked for among those of "
        "anchors, which are samples of the batch (`references_are_a_set`).",
    ),
    (
        "The angular loss depends on the length of embeddings, under a distance that normalizes them",
        """
        import torch
        from pytorch_metric_learning.losses import AngularLoss
        x, y = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1, 1])
        loss = AngularLoss()
        print(loss.distance.normalize_embeddings, loss(x, y).item(), loss(2 * x, y).item())
        """,
        "`normalize_embeddings` is true and does nothing (`length_changes_nothing`).",
    ),
    (
        "Equal embeddings crash the histogram loss",
        """
        import torch
        from pytorch_metric_learning.losses import HistogramLoss
        x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1, 1])
        try:
            HistogramLoss()(x, y)
        except RuntimeError as error:
            print(error)
        """,
        "A similarity of 1 belongs to the last bin; the loss of this batch is 0 (`any_batch_has_a_finite_loss`).",
    ),
    (
        "A batch in which no two labels are equal makes the NCA loss NaN",
        """
        import torch
        from pytorch_metric_learning.losses import NCALoss
        print(NCALoss()(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([0, 1])).item())
        """,
        "No anchor has a positive, so the loss is 0 (`any_batch_has_a_finite_loss`).",
    ),
    (
        "A sample of NaN is left out of the mean",
        """
        import torch
        from pytorch_metric_learning.losses import ContrastiveLoss
        x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [torch.nan, 1.0], [0.0, 1.0]], requires_grad=True)
        loss = ContrastiveLoss()(x, torch.tensor([0, 0, 1, 1]))
        print(loss.item(), torch.autograd.grad(loss, x)[0].isnan().any(1).tolist())
        """,
        "A loss that is a number says that all is well, with a gradient of NaN "
        "(`what_is_no_number_makes_the_loss_none`).",
    ),
    (
        "A zero vector has a gradient of 1e11",
        """
        import torch
        from pytorch_metric_learning.losses import ContrastiveLoss
        x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
        loss = ContrastiveLoss()(x, torch.tensor([0, 0, 1, 1]))
        print(torch.autograd.grad(loss, x)[0].norm(dim=1).tolist())
        """,
        "The vector has no direction to be turned, so its gradient is 0; as it is, clipping the norm of gradients "
        "stops everybody's step (`one_zero_vector_moves_no_mountains`).",
    ),
    (
        "Labels of uint8 are taken for a mask",
        """
        import torch
        from pytorch_metric_learning.losses import ArcFaceLoss
        torch.manual_seed(0)
        loss, x = ArcFaceLoss(num_classes=4, embedding_size=2), torch.eye(2)[[0, 0, 1, 1]]
        y = torch.tensor([0, 0, 1, 1])
        print(loss(x, y).item())
        try:
            loss(x, y.to(torch.uint8))
        except IndexError as error:
            print(error)
        """,
        "Both must be equal; small data sets store their labels so (`every_dtype_of_labels_will_do`).",
    ),
    (
        "A batch without samples makes the loss NaN",
        """
        import torch
        from pytorch_metric_learning.losses import ArcFaceLoss
        loss = ArcFaceLoss(num_classes=3, embedding_size=2)
        print(loss(torch.empty(0, 2), torch.empty(0, dtype=torch.long)).item())
        """,
        "Nothing to compare costs 0, as in PML's pair losses (`empty_batch_costs_nothing`).",
    ),
    (
        "After a training step the dynamic soft margin loss cannot be copied, nor used in the next step",
        """
        import copy
        import torch
        from pytorch_metric_learning.losses import DynamicSoftMarginLoss
        x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]], requires_grad=True)
        loss = DynamicSoftMarginLoss()
        loss(x, torch.tensor([0, 0, 1, 1])).backward()
        for again in (copy.deepcopy, lambda loss: loss(x, torch.tensor([0, 0, 1, 1])).backward()):
            try:
                again(loss)
            except RuntimeError as error:
                print(str(error)[:70])
        """,
        "Its histogram keeps the graph of the step before (`copies_are_equal`, `it_learns`).",
    ),
]
