"""The parameters of a model's calls, by the names that its server accepts."""

from __future__ import annotations

import logging
from typing import Any

from halos.scoring.api import Api
from halos.scoring.refusals import refused_parameter

_LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the length limit: OpenAI's newer models know only the second, many other servers only the first."""
log = logging.getLogger(__name__)


class Parameters:
    """The parameters that are sent with each call. A server's first refusal teaches the calls after it.

    The length limit is sent by its other name, and a seed that is refused is left out: neither changes what was asked
    for. Every other parameter does, and its refusal is the user's to answer.

    Args:
        api: the model, and what is asked of it.
        entry: where its settings stand, for messages.
    """

    def __init__(self, api: Api, entry: str) -> None:
        self.api, self.entry = api, entry
        self._limits = list(_LIMITS if api.server.base_url is not None else reversed(_LIMITS))
        self._takes_seed = True

    def of_call(self, seed: int | None) -> dict[str, Any]:
        """The parameters of the next call, besides the model and its messages."""
        api = self.api
        parameters: dict[str, Any] = {self._limits[0]: api.max_tokens, **api.extra_body}
        if api.temperature is not None:
            parameters["temperature"] = api.temperature
        if seed is not None and self._takes_seed:
            parameters["seed"] = seed
        if api.top_logprobs is not None:
            parameters |= {"logprobs": True, "top_logprobs": api.top_logprobs}
        return parameters

    def learn(self, sent: dict[str, Any], says: str, shown: str) -> bool:
        """Whether the next call differs from one that was refused, and so may succeed.

        Args:
            sent: its parameters.
            says: the text of the refusal.
            shown: the text as the user may see it.
        """
        name, is_value = refused_parameter(says, sent) or (None, False)
        if name == "seed" and self._takes_seed:
            self._takes_seed = False
            log.warning("%s takes no such seed: none is sent from here on (it says: %s)", self.api.address, shown)
        elif name == self._limits[0] and not is_value and len(self._limits) > 1:
            del self._limits[0]
            log.warning("%s knows no %s: %s is sent from here on (it says: %s)",
                        self.api.address, name, self._limits[0], shown)  # fmt: skip
        return name is not None and self.of_call(sent.get("seed")) != sent

    def fatal(self, sent: dict[str, Any], says: str, shown: str) -> str | None:
        """The sentence for the user when the refusal is one of a parameter that every call needs."""
        name, is_value = refused_parameter(says, sent) or (None, False)
        sent_as = str(sent.get(name or ""))[:60]
        refuses = f"{self.api.address} refuses {name} {sent_as} for {self.api.model} (it says: {shown})"
        if name is None or name == "seed" or (name in _LIMITS and is_value):  # the limit may suit a shorter prompt
            return None
        if name == "temperature":
            return f"{refuses}: change temperature in {self.entry}; null sends none"
        if name in ("logprobs", "top_logprobs"):
            return f"{refuses}, which this annotator reads: change model, base_url or annotator in {self.entry}"
        if name in self.api.extra_body:
            return f"{refuses}: correct extra_body in {self.entry}"
        return f"{refuses}, by both of its names: change model or base_url in {self.entry}"
