"""Eight questions about every frame of the demo recording, sixteen in flight: each about its own frame."""

from pathlib import Path
from statistics import mean

import pytest
from live_mlx_vlm import encode_folder

from infer.engine import Engine, EngineStats
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Request
from infer.sampling import Sampling
from seeonce.demo import questions
from seeonce.demo.questions import QUESTIONS
from seeonce.runs.prompts import Prompt
from seeonce.runs.score import read_truth

FOLDER = Path(questions.__file__).parent
ALONE = BatchLimits(1, 1, 2**30, share_prefixes=False)
EIGHT = [text for number in range(2) for texts in QUESTIONS.values() for text in texts[number : number + 1]][
    :8
]


class Recording:
    """The demo recording in a store, and its language model."""

    def __init__(self, root: Path) -> None:
        self.encoded = encode_folder(FOLDER / "checkpoint", FOLDER / "recording", root)
        self.frames = self.encoded.manifest.frames
        self._engine = Engine.load(self.encoded.checkpoint, "float32")

    def answers(
        self, limits: BatchLimits, questions: list[str]
    ) -> tuple[dict[tuple[str, str], str], EngineStats]:
        """Return the text of each answer by the name of the frame's file and by question."""
        asked = [(frame, text) for frame in self.frames for text in questions]
        requests = [
            Request(n, Prompt(text).segments(f), Sampling(max_tokens=80)) for n, (f, text) in enumerate(asked)
        ]
        source, stats = StoredFeatures(self.encoded.store, "demo"), list[EngineStats]()
        answers = {
            request.id: answer.text
            for request, answer in self._engine.answer(requests, source, limits, report=stats.append)
        }
        said = {(Path(frame.source).name, text): answers[n] for n, (frame, text) in enumerate(asked)}
        return said, stats[0]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording(tmp_path_factory.mktemp("demo"))


@pytest.mark.campaign
def test_every_answer_is_about_its_own_frame(recording: Recording) -> None:
    together, stats = recording.answers(BatchLimits(16, 4, 64), EIGHT)
    alone, _ = recording.answers(ALONE, EIGHT)
    assert together == alone
    assert stats.max_in_flight == 16
    assert (stats.num_images, stats.num_images_again) == (len({f.key for f in recording.frames}), 0)
    truth = read_truth(FOLDER / "recording" / "truth.csv")
    rates = {
        question: mean(
            said.strip() == truth[None, name, text].text
            for (name, text), said in together.items()
            if text in texts
        )
        for question, texts in QUESTIONS.items()
    }
    print({question: f"{rate:.0%}" for question, rate in rates.items()})
    assert min(rates.values()) >= 0.9


def test_the_questions_are_eight() -> None:
    assert len(set(EIGHT)) == 8
