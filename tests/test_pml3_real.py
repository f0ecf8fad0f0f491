"""What only a real PML 3 can answer: one test a question, skipped until one is installed."""

import pytest

from pml_ext import _pml
from pml_ext.testing import open_questions
from pml_ext.testing.questions import NOT_ASKED, QUESTIONS


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_question(question):
    if not _pml.HAS_TERMS:
        pytest.skip(f"needs PML 3: {question.text}")
    answer = question.answer()
    print(f"{question.name}: {answer}")
    assert answer.split(" (")[0] in question.answers, f"an answer that was not foreseen: {answer}"


def test_the_questions_can_be_printed():
    lines = open_questions().splitlines()
    assert len(lines) == len(QUESTIONS) == len({question.name for question in QUESTIONS})
    for line, question in zip(lines, QUESTIONS, strict=True):
        assert line.startswith(f"{question.name}: {question.text}")
        assert _pml.HAS_TERMS or line.endswith(f"{NOT_ASKED}.")
