"""One question to an OpenAI-compatible endpoint, and its answer."""

from __future__ import annotations

import os
import re
import sys
from urllib.parse import urlsplit

import openai

from prompts.client import make_client
from utils.errors import UserError

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "prompts",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"prompts": {"type": "array", "items": {"type": "string"}}},
            "required": ["prompts"],
            "additionalProperties": False,
        },
    },
}


class Endpoint:
    """A chat-completions endpoint that hides its key from every message and answer.

    `structured` says whether the next request asks for output by SCHEMA. Whoever finds its answers
    without use sets it to False: a server may take the field and answer worse with it.
    """

    def __init__(
        self, model: str, base_url: str | None, timeout: float, structured: bool = True
    ) -> None:
        """Take the key from OPENAI_API_KEY; UserError for no or an unusable key or address, and
        for proxies, certificates and headers in the environment that no request can be made with.
        """
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self.key:
            raise UserError(
                "OPENAI_API_KEY is not set; put the endpoint's key into that environment variable "
                "(any word for a local endpoint that needs none)"
            )
        if not re.fullmatch(r"[!-~]+", self.key):
            raise UserError("OPENAI_API_KEY holds blanks or non-ASCII characters; set it anew")
        given = "--base-url" if base_url else "OPENAI_BASE_URL"
        address = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.host = host_of(address)
        if self.host is None:
            raise UserError(
                f"{given} is no http or https address; give one such as http://127.0.0.1:8000/v1"
            )
        self.model, self.timeout, self.structured = model, timeout, structured
        self.client = make_client(api_key=self.key, base_url=address, timeout=timeout)

    def scrub(self, text: str) -> str:
        """`text` without the key.

        A key below 5 characters is the placeholder of a local endpoint ("none"): a word that a
        prompt may hold, and no secret.
        """
        return text.replace(self.key, "[key]") if len(self.key) >= 5 else text

    def ask(self, message: str) -> str:
        """The model's answer to one message, "" where it gives none.

        A request for structured output that fails, in whatever way but for the key and the rate
        limit, is made again without; if that is answered, so are the following ones.
        Raises UserError for every failure that the openai client's own retries did not mend.
        """
        if self.structured:
            try:
                return self._answer(message, response_format=SCHEMA)
            except PLAIN_TOO as error:
                raise UserError(self._explain(error)) from None
            except FAILURES:
                answer = self._plain(message)
                self.give_up_structure("failed")
                return answer
        return self._plain(message)

    def give_up_structure(self, what: str) -> None:
        """Ask without response_format from here on, and say so."""
        if self.structured:
            print(
                f"{self.host}: the request with response_format {what}; asking without from here "
                "(--no-json-mode asks without from the start)",
                file=sys.stderr,
            )
        self.structured = False

    def _plain(self, message: str) -> str:
        try:
            return self._answer(message)
        except FAILURES as error:
            raise UserError(self._explain(error)) from None

    def _answer(self, message: str, **settings) -> str:
        """One request; raises FAILURES, NoCompletion where the answer is something else."""
        try:
            completion = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": message}], **settings
            )
        except UnicodeEncodeError:  # a ValueError too, of what is sent, not of what came back
            raise UserError(
                "--model, --base-url or a header in the environment holds characters that cannot "
                "be sent; give them in plain letters"
            ) from None
        except ValueError:  # an answer that announces JSON and is none, or is cut off
            raise NoCompletion from None
        try:
            answer = completion.choices[0].message
            texts = [answer.content, getattr(answer, "reasoning_content", None)]
        except (AttributeError, IndexError, TypeError):  # a web page, or JSON of another kind
            raise NoCompletion(_said(getattr(completion, "error", None))) from None
        # Some servers answer in parts; some leave all in the reasoning when the length is used up.
        return self.scrub(next(filter(None, map(_text, texts)), ""))

    def _explain(self, error: Exception) -> str:
        """One sentence on a failed request, with what the server or the network said."""
        again = "start the same command again to go on from what is kept"
        said = self.scrub(" ".join(str(error).split())[:300])
        if isinstance(error, NoCompletion):
            quoted = f" but with: {said}" if said else ""
            return (
                f"{self.host} did not answer with a chat completion{quoted}; check --base-url "
                "(often .../v1)"
            )
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{self.host} gave no answer within {self.timeout:g} s; raise --timeout and {again}"
            )
        if isinstance(error, openai.APIConnectionError):
            cause = self.scrub(" ".join(str(error.__cause__ or error).split())[:200])
            return (
                f"the connection to {self.host} failed ({cause}); check --base-url, network and "
                f"proxy and {again}"
            )
        code = getattr(error, "status_code", 0)
        advice = {
            401: f"mend OPENAI_API_KEY and {again}",
            403: f"check OPENAI_API_KEY and what it may use, and {again}",
            404: "check --model and --base-url",
            429: f"wait or raise the quota, then {again}",
        }.get(code, f"wait and {again}" if code >= 500 else "check --model and --base-url")
        what = {
            401: "refused the key (401)",
            403: "refused access (403)",
            404: f"knows no such model ({self.model}) or address (404)",
            429: "takes no more requests (429: rate limit or quota)",
        }.get(code, f"failed ({code})" if code >= 500 else f"rejected the request ({code})")
        quoted = f"; it said: {said}" if code not in (401, 429) and said else ""
        return f"{self.host} {what}; {advice}{quoted}"


class NoCompletion(Exception):
    """What came back is no chat completion; the message is the server's own, or empty."""


# What a request without response_format would meet as well: no reason to try one.
PLAIN_TOO = (openai.AuthenticationError, openai.PermissionDeniedError, openai.RateLimitError)
FAILURES = (openai.OpenAIError, NoCompletion)


def host_of(address: str) -> str | None:
    """Host and port of an http or https address, None for anything else."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return f"{parts.hostname}:{port}" if port else parts.hostname


def _text(content) -> str:
    """The text of a message's content: itself, or the texts of its parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _said(error) -> str:
    """The words of an error that a server sends with status 200."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
