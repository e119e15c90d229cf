"""vLLM on a GPU: greedy responses are those of transformers."""

from __future__ import annotations

from tests.test_vllm import (  # noqa: F401
    environment,
    model,
    runs,
    test_a_killed_run_goes_on_at_a_share_and_ends_with_the_same_text,
    test_greedy_responses_are_those_of_transformers,
    test_responses_end_before_a_stop_string_as_those_of_transformers,
)
