"""One question to an OpenAI-compatible endpoint, one answer, and the prompts in it."""

from __future__ import annotations

import json
import os
import re
from urllib.parse import urlsplit

import openai

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
    """A chat-completions endpoint that hides its key from every message and answer."""

    def __init__(self, model: str, base_url: str | None, timeout: float) -> None:
        """Take the key from OPENAI_API_KEY; UserError for no or an unusable key or address."""
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self.key:
            raise UserError(
                "OPENAI_API_KEY is not set; put the endpoint's key into that environment variable "
                "(any word for a local endpoint that needs none)"
            )
        if not re.fullmatch(r"[!-~]+", self.key):
            raise UserError("OPENAI_API_KEY holds blanks or non-ASCII characters; set it anew")
        address = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        try:
            parts = urlsplit(address)
            self.host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        except ValueError:
            parts = None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                "--base-url is no http or https address; give one such as http://127.0.0.1:8000/v1"
            )
        self.model, self.timeout, self.structured = model, timeout, True
        self.client = openai.OpenAI(api_key=self.key, base_url=address, timeout=timeout)

    def scrub(self, text: str) -> str:
        """`text` without the key.

        A key below 5 characters is the placeholder of a local endpoint ("none"): a word that a
        prompt may hold, and no secret.
        """
        return text.replace(self.key, "[key]") if len(self.key) >= 5 else text

    def ask(self, message: str) -> str:
        """The model's answer to one message, "" where it gives none.

        Asks for structured output until the endpoint refuses that once (400 or 422), then without.
        Raises UserError for every failure that the openai client's own retries did not mend.
        """
        try:
            if self.structured:
                try:
                    return self._answer(message, response_format=SCHEMA)
                except (openai.BadRequestError, openai.UnprocessableEntityError):
                    self.structured = False
            return self._answer(message)
        except openai.OpenAIError as error:
            raise UserError(self._explain(error)) from None
        except ValueError:  # an answer that announces JSON and is none, or is cut off
            raise UserError(self._no_completion()) from None

    def _answer(self, message: str, **settings) -> str:
        completion = self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": message}], **settings
        )
        try:
            content = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError):  # a web page, or JSON of another kind
            raise UserError(self._no_completion()) from None
        return self.scrub(content) if isinstance(content, str) else ""

    def _no_completion(self) -> str:
        return f"{self.host} did not answer with a chat completion; check --base-url (often .../v1)"

    def _explain(self, error: openai.OpenAIError) -> str:
        """One sentence on a failed request; what the server says is quoted only for 400 and 422."""
        again = "start the same command again to go on from what is kept"
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{self.host} gave no answer within {self.timeout:g} s; raise --timeout and {again}"
            )
        if isinstance(error, openai.APIConnectionError):
            return f"the connection to {self.host} failed; check --base-url and network and {again}"
        code = getattr(error, "status_code", None)
        if code in (401, 403):
            return f"{self.host} refused the key ({code}); mend OPENAI_API_KEY and {again}"
        if code == 404:
            return f"{self.host} knows no model {self.model} (404); check --model and --base-url"
        if code == 429:
            return (
                f"{self.host} takes no more requests (429: rate limit or quota); wait or raise the "
                f"quota, then {again}"
            )
        if code in (400, 422):
            said = " ".join(self.scrub(str(error)).split())[:300]
            return f"{self.host} rejected the request, check --model: {said}"
        if code is not None:
            return f"{self.host} failed ({code}); wait and {again}"
        return self._no_completion()


def parse_answer(text: str) -> list[str]:
    """The prompts in a model's answer: {"prompts": [...]}, a JSON array, or one within other text.

    An array that breaks off yields the texts before the break; an answer without one yields [].
    """
    try:
        value = json.loads(text)
        prompts = value.get("prompts") if isinstance(value, dict) else value
        if isinstance(prompts, list):
            return [" ".join(item.split()) for item in prompts if isinstance(item, str)]
    except json.JSONDecodeError:
        pass
    start = re.search(r'\[\s*(?=")', text)
    position, prompts = (start.end(), []) if start else (len(text), [])
    while position < len(text) and text[position] == '"':
        try:
            item, position = json.JSONDecoder().raw_decode(text, position)
        except json.JSONDecodeError:
            break
        prompts.append(" ".join(item.split()))
        position = re.compile(r"\s*,?\s*").match(text, position).end()
    return prompts
