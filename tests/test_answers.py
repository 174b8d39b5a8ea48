"""Which prompts of a language model's answer are used, and when response_format is given up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prompt_sets import varied
from refusals import refused
from test_prompts import ask, expected, server  # noqa: F401 - server is a fixture

from prompts import build
from prompts.answers import best_prompts

ROOT = Path(__file__).parents[1]
HAIR = ("red", "brown", "black", "grey")
FOUR = [f"Portrait face photo of a smiling woman with {colour} hair." for colour in HAIR]
DRAFT = json.dumps(FOUR[:2])


def passing(texts: list[str]) -> int:
    return min(4, len({text for text in texts if text in FOUR}))


def numbered(mark: str) -> str:
    return "\n".join(mark.format(number, text) for number, text in enumerate(FOUR, start=1))


ANSWERS = {  # all hold the four prompts
    "an object": json.dumps({"prompts": FOUR}),
    "an array": json.dumps(FOUR),
    "blanks in it": json.dumps([text.replace(" ", " \n ") for text in FOUR]),
    "a code fence": f"Here they are:\n```json\n{json.dumps(FOUR, indent=2)}\n```\nEnjoy [them]!",
    "a draft while thinking": f"<think>Say {DRAFT}? Or [more].</think>\n{json.dumps(FOUR)}",
    "a draft in prose": f"First idea: {DRAFT}. Better: {json.dumps(FOUR)}",
    "a better draft": f"{json.dumps(FOUR)} or, in short, {json.dumps(['A woman.'] * 9)}",
    "an example after it": f"{json.dumps(FOUR)} as you asked, in the form {{\"prompts\": []}}",
    "only thoughts": f"<think>{json.dumps(FOUR)}</think>",
    "objects": json.dumps([{"id": n, "prompt": text} for n, text in enumerate(FOUR)]),
    "objects with notes": json.dumps({"prompts": [
        {"note": "Portrait", "text": text, "tags": ["hair"]} for text in FOUR]}),
    "an object a line": "\n".join(json.dumps({"prompt": text}) for text in FOUR),
    "two arrays": f"Red ones: {json.dumps(FOUR[:2])}\nOthers: {json.dumps(FOUR[2:])}",
    "groups": json.dumps({"warm": FOUR[:2], "cold": {"prompts": FOUR[2:]}}),
    "numbers for keys": json.dumps(dict(enumerate(FOUR))),
    "JSON in a string": json.dumps(json.dumps({"prompts": FOUR})),
    "a numbered list in a string": json.dumps({"prompts": numbered("{}. {}")}),
    "a numbered list": "Sure!\n\n" + numbered("{}. {}") + "\n\nTell me if you want more.",
    "brackets": numbered("({}) \"{}\""),
    "bold numbers": numbered("**{}.** {}"),
    "bold words": numbered("Prompt {}: **{}**"),
    "bullets": numbered("- {1}"),
    "bare lines": "\n".join(FOUR),
    "a comma too many": json.dumps(FOUR)[:-1] + ",]",
    "a comma too few": json.dumps(FOUR, indent=1).replace(",\n", "\n", 1),
    "a line break in a text": json.dumps(FOUR).replace("smiling woman", "smiling\nwoman"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_every_prompt_of_an_answer_is_found(case):
    found = best_prompts(ANSWERS[case], passing)
    assert [text for text in found if text in FOUR] == FOUR


CLEAN = ["an object", "a draft while thinking", "objects", "a code fence", "objects with notes",
         "JSON in a string", "bold numbers", "an example after it"]  # fmt: skip


@pytest.mark.parametrize("case", [*CLEAN, "a numbered list in a string"])
def test_nothing_else_is_taken_for_a_prompt(case):
    assert best_prompts(ANSWERS[case], passing) == FOUR


@pytest.mark.parametrize("whole", [
    json.dumps({"prompts": FOUR}), json.dumps(FOUR, indent=2), numbered("{}. {}"),
    json.dumps([{"id": n, "prompt": text} for n, text in enumerate(FOUR)]),
    f"<think>{DRAFT}</think>" + json.dumps({"prompts": FOUR}),
    "He said \"hi " + json.dumps(FOUR),
])  # fmt: skip
def test_of_a_list_that_breaks_off_every_whole_prompt_is_found(whole):
    half = whole[: whole.rindex("grey")]
    usable = lambda texts: sum(text.startswith("Portrait face") for text in texts)  # noqa: E731
    found = best_prompts(half, usable)
    assert [text for text in found if text.startswith("Portrait face")] == FOUR[:3]


@pytest.mark.parametrize("text", ["", "null", "no list [1]", '{"prompts": 7}', "I cannot help."])
def test_an_answer_without_prompts_gives_none(text):
    assert best_prompts(text, passing) == []


@pytest.mark.parametrize("unit", ["[", '{"a":', '"', "\\", '["\\"', "[[],", '["P a", ', "1. P\n"])
def test_hostile_answers_are_read_in_time(unit):
    text = unit * (60_000 // len(unit))
    assert isinstance(best_prompts(text, passing), list)


# --- a feature is given up, not the server -------------------------------------------------------


def faulty(monkeypatch, server, fault):  # noqa: F811
    """The server does `fault` to every request with response_format; counts those and the rest."""
    handler, counts = server.RequestHandlerClass, {"with": 0, "without": 0}
    good = handler.do_POST

    class Replay:
        def __init__(self, data):
            self.data = data

        def read(self, _):
            return self.data

    def respond(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        structured = "response_format" in json.loads(body)
        counts["with" if structured else "without"] += 1
        if structured and fault is not None:
            server.script = [fault]
        lines, self.rfile = self.rfile, Replay(body)
        good(self)
        self.rfile = lines

    monkeypatch.setattr(handler, "do_POST", respond)
    return counts


FAULTS = {  # what is done, requests with response_format until it is given up
    400: 1, 404: 1, 422: 1, 415: 1, 500: 3, 501: 3, 503: 3,
    "drop": 3, "page": 1, "slow": 3, "broken": 1, "wrong": 1, "empty": 1,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_response_format_is_given_up_and_not_the_server(
    fault, server, tmp_path, capsys, monkeypatch  # noqa: F811
):
    counts = faulty(monkeypatch, server, fault)
    out = tmp_path / "Smiling_Male_contextual_4.json"
    code, _, err = ask(server, out, capsys, "--timeout", "0.5" if fault == "slow" else "30")
    assert code == 0, err
    assert json.loads(out.read_text())["cells"] == expected(4)
    assert counts == {"with": FAULTS[fault], "without": 4}
    assert err.count("from now on it is left out") == 1


@pytest.mark.parametrize("fault", [None, 500])
def test_a_flag_never_asks_for_response_format(
    fault, server, tmp_path, capsys, monkeypatch  # noqa: F811
):
    counts = faulty(monkeypatch, server, fault)
    out = tmp_path / "Smiling_Male_contextual_4.json"
    assert ask(server, out, capsys, "--no-json-mode")[0] == 0
    assert counts == {"with": 0, "without": 4}


def test_answers_that_are_kept_are_read_again(server, tmp_path, capsys):  # noqa: F811
    """An answer that was stopped before its use, or read by older code, is not asked for again."""
    server.script = ["good", 404, 404]
    out = tmp_path / "Smiling_Male_contextual_4.json"
    assert ask(server, out, capsys)[0] == 2
    partial = out.with_name(f"{out.name}.partial")
    document = json.loads(partial.read_text())
    texts = varied(50)["cells"]
    document["cells"] = {group: [] for group in texts}
    answer = "<think>[]</think>" + json.dumps([{"prompt": text} for text in texts["1_1"][:4]])
    document["source"]["raw"].append({"cell": "1_1", "answer": answer})
    partial.write_text(json.dumps(document))
    server.script, server.messages = [], []
    assert ask(server, out, capsys)[0] == 0
    assert sorted(group for group, _ in server.messages) == ["0_1", "1_0"]
    assert json.loads(out.read_text())["cells"] == expected(4)


def test_an_error_with_status_200_is_quoted(server, tmp_path, capsys, monkeypatch):  # noqa: F811
    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.reply(200, json.dumps({"error": {"message": "out of credits", "code": 402}}))

    monkeypatch.setattr(server.RequestHandlerClass, "do_POST", respond)
    code, _, err = ask(server, tmp_path / "a.json", capsys)
    assert code == 2
    assert "out of credits" in err


# --- the environment -----------------------------------------------------------------------------

FLAGS = ["--target", "Smiling", "--protected", "Male", "--number", "4", "--model", "m",
         "--base-url", "http://127.0.0.1:9/v1"]  # fmt: skip
ENVIRONMENTS = [  # variables, those that the sentence names, those that it must not
    ({"ALL_PROXY": "socks://127.0.0.1:1"}, ["ALL_PROXY"], []),
    ({"all_proxy": "ftp://127.0.0.1:1"}, ["all_proxy"], []),
    ({"HTTPS_PROXY": "user:secret:here"}, ["HTTPS_PROXY"], ["secret"]),
    ({"HTTP_PROXY": "http://h:port", "ALL_PROXY": "http://127.0.0.1:1"}, ["HTTP_PROXY"], ["ALL_"]),
    ({"HTTP_PROXY": "http://h:port", "ALL_PROXY": "socks://x"}, ["HTTP_PROXY", "ALL_PROXY"], []),
    ({"SSL_CERT_FILE": "/nowhere/a.pem"}, ["SSL_CERT_FILE", "No such file"], []),
    ({"SSL_CERT_FILE": __file__}, ["SSL_CERT_FILE", "no certificate"], []),
    # read only where certificates are named, too
    ({"SSLKEYLOGFILE": "/nowhere/keys", "SSL_CERT_DIR": str(Path(__file__).parent)},
     ["SSLKEYLOGFILE", "No such file"], ["SSL_CERT"]),
    ({"OPENAI_PROJECT_ID": "\u00fc"}, ["OPENAI_PROJECT_ID"], []),
    ({"OPENAI_ORG_ID": "a\nb"}, ["OPENAI_ORG_ID"], []),
]


@pytest.mark.parametrize(("variables", "named", "unnamed"), ENVIRONMENTS)
def test_an_environment_that_no_client_can_use(
    variables, named, unnamed, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
                 "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    arguments = [*FLAGS, "--out", tmp_path / "a.json"]
    sentence = refused(capsys, build.main, arguments, names=named[0], out=tmp_path)
    assert all(word in sentence for word in named)
    assert not any(word in sentence for word in unnamed)
    assert dict(os.environ) == before


def test_the_address_at_fault_is_named_by_its_source(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:1")
    arguments = [*FLAGS[:-2], "--out", tmp_path / "a.json"]
    assert "--base-url" not in refused(capsys, build.main, arguments, names="OPENAI_BASE_URL is")


# --- paths ---------------------------------------------------------------------------------------


def test_a_home_and_a_variable_in_out_are_filled_in(server, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SETS", "sets")
    name = "Smiling_Male_contextual_4.json"
    (tmp_path / "other").mkdir()
    arguments = FLAGS[:-2] + ["--base-url", server.url]
    build.main([*arguments, f"--out=~/$SETS/{name}"])
    assert (tmp_path / "home" / "sets" / name).is_file()


@pytest.mark.parametrize("module", ["build", "check"])
def test_a_command_started_by_its_path_is_the_module(module, tmp_path):
    flags = ["--help"] if module == "build" else ["Smiling_Male_plain.json"]
    tmp_path.joinpath("Smiling_Male_plain.json").write_text("[]")
    printed = []
    for way in ([str(ROOT / "prompts" / f"{module}.py")], ["-m", f"prompts.{module}"]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT) if way[0] == "-m" else ""}
        run = subprocess.run([sys.executable, *way, *flags], cwd=tmp_path, env=environment,
                             capture_output=True, text=True, check=False)  # fmt: skip
        printed.append((run.returncode, run.stdout, run.stderr))
    assert printed[0] == printed[1]
    assert printed[0][0] == (0 if module == "build" else 1), printed
