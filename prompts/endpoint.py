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
    """A chat-completions endpoint whose key never appears in a message or an answer.

    structured: whether the next request asks for output by SCHEMA. Set it to False where the
    answers are of no use: a server may accept the field and answer worse with it.
    """

    def __init__(
        self, model: str, base_url: str | None, timeout: float, structured: bool = True
    ) -> None:
        """Take the key from OPENAI_API_KEY; without base_url, the address from OPENAI_BASE_URL.

        timeout: in seconds. Raises UserError for a missing or unusable key or address, and for
        proxies, certificates and headers in the environment that prevent any request.
        """
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self.key:
            raise UserError(
                "OPENAI_API_KEY is not set; put the endpoint's key into that environment variable "
                "(any word for a local endpoint that needs none)"
            )
        if not re.fullmatch(r"[!-~]+", self.key):
            raise UserError("OPENAI_API_KEY holds spaces or non-ASCII characters; set it again")
        given = "--base-url" if base_url else "OPENAI_BASE_URL"
        address = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.host = host_of(address)
        if self.host is None:
            raise UserError(
                f"{given} is not an http(s) address; give one such as http://127.0.0.1:8000/v1"
            )
        self.model, self.timeout, self.structured = model, timeout, structured
        self.client = make_client(api_key=self.key, base_url=address, timeout=timeout)

    def scrub(self, text: str) -> str:
        """`text` without the key.

        A key of fewer than 5 characters stays: it is a local endpoint's placeholder ("none"), not a
        secret, and may be a word of a prompt.
        """
        return text.replace(self.key, "[key]") if len(self.key) >= 5 else text

    def ask(self, message: str) -> str:
        """The model's answer to one message, "" where it gives none.

        Where a request for structured output fails, for another reason than the key or the rate
        limit, it is repeated without; if that succeeds, later requests go without, too. Raises
        UserError for failures that the openai client's own retries did not overcome.
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
        """From now on, ask without response_format, and say so. what: happened to the request."""
        if self.structured:
            print(
                f"{self.host}: the request with response_format {what}; from now on it is left "
                "out (--no-json-mode leaves it out from the start)",
                file=sys.stderr,
            )
        self.structured = False

    def _plain(self, message: str) -> str:
        try:
            return self._answer(message)
        except FAILURES as error:
            raise UserError(self._explain(error)) from None

    def _answer(self, message: str, **settings) -> str:
        """The answer to one request. Raises FAILURES: NoCompletion where it is no completion."""
        try:
            completion = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": message}], **settings
            )
        except UnicodeEncodeError:  # a ValueError as well, but of what is sent
            raise UserError(
                "--model, --base-url or a header in the environment holds characters that cannot "
                "be sent; give them in plain letters"
            ) from None
        except ValueError:  # an answer that claims to be JSON and is not, or is cut off
            raise NoCompletion from None
        try:
            answer = completion.choices[0].message
            texts = [answer.content, getattr(answer, "reasoning_content", None)]
        except (AttributeError, IndexError, TypeError):  # a web page, or other JSON
            raise NoCompletion(_said(getattr(completion, "error", None))) from None
        # Some servers answer in parts; some leave everything in the reasoning when length runs out.
        return self.scrub(next(filter(None, map(_text, texts)), ""))

    def _explain(self, error: Exception) -> str:
        """A failed request in one sentence, with what the server or the network said."""
        again = "rerun the same command to resume"
        said = self.scrub(" ".join(str(error).split())[:300])
        if isinstance(error, NoCompletion):
            quoted = f" but with: {said}" if said else ""
            return (
                f"{self.host} did not answer with a chat completion{quoted}; check --base-url "
                "(often .../v1)"
            )
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{self.host} did not answer within {self.timeout:g} s; raise --timeout and {again}"
            )
        if isinstance(error, openai.APIConnectionError):
            cause = self.scrub(" ".join(str(error.__cause__ or error).split())[:200])
            return (
                f"the connection to {self.host} failed ({cause}); check --base-url, network and "
                f"proxy and {again}"
            )
        code = getattr(error, "status_code", 0)
        advice = {
            401: f"correct OPENAI_API_KEY and {again}",
            403: f"check OPENAI_API_KEY and its permissions, and {again}",
            404: "check --model and --base-url",
            429: f"wait or raise the quota, then {again}",
        }.get(code, f"wait and {again}" if code >= 500 else "check --model and --base-url")
        what = {
            401: "refused the key (401)",
            403: "refused access (403)",
            404: f"knows no such model ({self.model}) or address (404)",
            429: "accepts no more requests (429: rate limit or quota)",
        }.get(code, f"failed ({code})" if code >= 500 else f"rejected the request ({code})")
        quoted = f"; it said: {said}" if code not in (401, 429) and said else ""
        return f"{self.host} {what}; {advice}{quoted}"


class NoCompletion(Exception):
    """The answer is not a chat completion; the message is the server's own, or empty."""


# Failures that a request without response_format would meet as well.
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
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _said(error) -> str:
    """The message of an error that a server sends with status 200."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
