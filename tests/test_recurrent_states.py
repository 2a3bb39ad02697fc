"""Gated delta nets: padding, sharing, joining and leaving do not touch a row's states; controls fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from asked_live import Asked

from infer.decoding import DecodeBatch
from infer.kv_cache import RecurrentRow, RowsRecurrentState, rounded_up
from infer.limits import BatchLimits
from infer.prefill import Prefill
from infer.prefixes import most_saved
from infer.request import Request
from infer.tokenizer import ImageSpan, PromptTokens

Patch = pytest.MonkeyPatch
LIMITS = BatchLimits(max_num_seqs=8, prefill_batch_size=4, prefill_step_size=33)
NUM_QUESTIONS = 5


@pytest.fixture(scope="module")
def asked(qwen3_5: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(qwen3_5, tmp_path_factory.mktemp("asked"), 2)


@pytest.fixture(scope="module")
def questions(asked: Asked) -> list[Request]:
    """Five of every frame, of five lengths."""
    return asked.questions(NUM_QUESTIONS)


def _wrong(asked: Asked, questions: list[Request], limits: BatchLimits = LIMITS) -> int:
    """Return how many answers are not those of one at a time live."""
    tokens = asked.run(questions, limits).tokens(questions)
    return sum(one != other for one, other in zip(tokens, asked.want(questions), strict=True))


def test_five_questions_prefill_each_image_once(asked: Asked, questions: list[Request]) -> None:
    ended = asked.run(questions, LIMITS)
    assert ended.tokens(questions) == asked.want(questions)
    num_tokens = sum(frame.num_tokens for frame in asked.frames)
    counted = ended.stats
    assert (counted.num_images, counted.num_images_again) == (len(asked.frames), 0)
    assert counted.num_image_tokens == num_tokens


def _exchange_states(patch: Patch) -> None:
    right = DecodeBatch.join

    def exchanged(self: DecodeBatch, prefill: Prefill) -> None:
        num_rows = len(prefill.sequences)
        for state in prefill.cache:
            if isinstance(state, RowsRecurrentState) and num_rows > 1 and state.recurrent is not None:
                state.recurrent = state.recurrent[mx.array([1, 0, *range(2, num_rows)])]
        right(self, prefill)

    patch.setattr(DecodeBatch, "join", exchanged)


def _let_padding_in(patch: Patch) -> None:
    patch.setattr(RowsRecurrentState, "make_mask", lambda self, num_columns: None)


def _leave_windows_behind_padding(patch: Patch) -> None:
    def kept(
        self: RowsRecurrentState, index: int, inputs: mx.array, width: int, lengths: None = None
    ) -> None:
        self.window = mx.contiguous(inputs[:, -width:])

    patch.setattr(RowsRecurrentState, "update_window", kept)


def _copy_a_token_early(patch: Patch) -> None:
    """With chunks of one token, what was there before the last of them is a token early."""
    right = RowsRecurrentState.update_window
    before: dict[int, tuple[mx.array, ...]] = {}

    def noted(
        self: RowsRecurrentState, index: int, inputs: mx.array, width: int, lengths: None = None
    ) -> None:
        before[id(self)] = self.state
        right(self, index, inputs, width, lengths)

    def early(self: RowsRecurrentState, index: int, num_tokens: int) -> RecurrentRow:
        window, recurrent = before[id(self)]
        return RecurrentRow(window[index : index + 1], recurrent[index : index + 1], num_tokens)

    patch.setattr(RowsRecurrentState, "update_window", noted)
    patch.setattr(RowsRecurrentState, "row", early)


@pytest.mark.parametrize("fault", [_exchange_states, _let_padding_in, _leave_windows_behind_padding])
def test_a_fault_in_the_states_gives_other_answers(
    fault: Callable[[Patch], None], asked: Asked, questions: list[Request], monkeypatch: Patch
) -> None:
    """Without one they are right: ``test_five_questions_prefill_each_image_once``."""
    fault(monkeypatch)
    assert _wrong(asked, questions) > 0


def test_a_state_that_is_copied_a_token_early_gives_other_answers(
    asked: Asked, questions: list[Request], monkeypatch: Patch
) -> None:
    few, limits = questions[:3], replace(LIMITS, prefill_step_size=1)
    assert _wrong(asked, few, limits) == 0
    _copy_a_token_early(monkeypatch)
    assert _wrong(asked, few, limits) > 0


def test_a_state_is_not_handed_out_for_another_number_of_tokens() -> None:
    states = RowsRecurrentState([2], used=5, starts=[2])
    states.window, states.recurrent = mx.zeros((1, 3, 8)), mx.zeros((1, 2, 4, 4))
    assert states.row(0, 3).num_tokens == 3
    with pytest.raises(RuntimeError, match="after 3 tokens is not one after 2"):
        states.row(0, 2)


def test_a_rows_window_lies_right_before_its_first_token_whatever_padding_there_is() -> None:
    window = [-3.0, -2.0, -1.0]
    for padding in range(6):
        states = RowsRecurrentState([0, 0], starts=[padding, 0])
        columns = mx.concatenate([mx.zeros(padding), mx.arange(5 - padding)])
        inputs = mx.stack([mx.concatenate([mx.array(window), row]) for row in (columns, mx.arange(5.0))])
        inputs = inputs[:, :, None]
        states.update_window(0, inputs, 3)
        assert inputs[0, padding:, 0].tolist() == [*window, *map(float, range(5 - padding))]
        assert inputs[1, :, 0].tolist() == [*window, *map(float, range(5))]
        assert states.window is not None
        assert states.window[0, :, 0].tolist() == [*window, *map(float, range(5 - padding))][-3:]


def test_states_take_the_bytes_that_the_bound_counts(
    asked: Asked, questions: list[Request], monkeypatch: Patch
) -> None:
    held: list[int] = []
    right = DecodeBatch.join

    def noted(self: DecodeBatch, prefill: Prefill) -> None:
        states = [state for state in prefill.cache if isinstance(state, RowsRecurrentState)]
        held.append(sum(array.nbytes for state in states for array in state.state) // len(prefill.sequences))
        right(self, prefill)

    monkeypatch.setattr(DecodeBatch, "join", noted)
    asked.run(questions[:NUM_QUESTIONS], LIMITS)
    assert set(held) == {asked.engine.model.row_bytes}
    layers = asked.engine.model.checkpoint.text.layers
    assert [layer.is_recurrent for layer in layers] == [True, True, True, False]


def test_rows_are_held_within_the_bound(asked: Asked, questions: list[Request]) -> None:
    model = asked.engine.model
    longest = max(len(asked.prompt(request).ids) + 8 for request in questions)
    three = 3 * (rounded_up(longest) * model.kv_token_bytes + model.row_bytes)
    ended = asked.run(questions, replace(LIMITS, kv_memory_bytes=three, share_prefixes=False))
    assert ended.tokens(questions) == asked.want(questions)
    assert ended.stats.max_in_flight == 3


def _prompt(*spans: tuple[int, int]) -> PromptTokens:
    return PromptTokens(tuple(range(100)), tuple(ImageSpan(start, num, (1, 2, 2)) for start, num in spans))


@pytest.mark.parametrize(
    ("common", "want"),
    [
        ([], (0, 0)),
        ([40, 12, 30], (3, 12)),  # all share the image: the shortest of them is of use to all
        ([40, 5, 30], (2, 30)),  # one goes into the image only: it is no follower
        ([2, 1], (0, 0)),  # nothing of the image
    ],
)
def test_what_most_share_is_kept(common: list[int], want: tuple[int, int]) -> None:
    assert most_saved(_prompt((2, 10)), common) == want


def test_a_second_image_that_few_share_is_kept_where_that_saves_more() -> None:
    prompt = _prompt((2, 10), (20, 10))
    assert most_saved(prompt, [35, 35, 15]) == (2, 35)
    assert most_saved(prompt, [35, 15, 15]) == (3, 15)
