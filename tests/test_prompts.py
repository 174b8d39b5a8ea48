"""The committed prompt sets, their rules, and asking a language model for more."""

import json
import re
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prompt_sets import varied

from prompts import build, check
from prompts.attributes import HEAD_POSE, ages, values_named
from prompts.instruction import STARTS_WITH, instruction
from utils.errors import UserError
from utils.metrics import GROUPS

FOLDER = Path(check.__file__).parent
FILES = sorted(FOLDER.glob("*.json"))
SETS = ("plain", "contextual_25", "contextual_50", "contextual_head_poses_50")
PAIRS = ("Smiling_Male", "Smiling_Young", "Young_Male", "Female_White")
KEY = "sk-aB3-secret-of-the-test"


def committed(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


# --- the committed sets ---


def test_every_pair_has_its_four_sets():
    names = {path.stem for path in FILES}
    assert {f"{pair}_{name}" for pair in PAIRS for name in SETS} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_file_passes(path):
    assert [str(failure) for failure in check.check_file(path)] == []


# --- every rule catches what it is for ---

OF_SETS = {"ages", "openings", "overlap", "coverage", "cycle"}  # test_variety.py and below
SMILING = "Portrait face photo of a smiling woman with "
MUTATIONS = [  # file, group, prompt put in place of the first one, rule that must fail
    ("Smiling_Male_contextual_50", "1_0", "A photo of a smiling woman with red hair.", "start"),
    ("Smiling_Male_contextual_50", "1_0", "Portrait face photo of any smiling woman.", "start"),
    (
        "Smiling_Male_contextual_50",
        "1_0",
        "Portrait face photo of a woman with red hair.",
        "target",
    ),
    ("Smiling_Male_contextual_50", "1_0", "{start} stern woman, unsmiling.", "target negation"),
    ("Smiling_Male_contextual_50", "1_0", "{start} not smiling lady.", "target negation"),
    ("Smiling_Male_contextual_50", "0_0", "{start} serious, unsmiling woman.", "negation"),
    ("Smiling_Male_contextual_50", "0_0", "{start} grim woman without a smile.", "negation"),
    ("Smiling_Young_contextual_50", "1_0", "{start} smiling, no longer young man.", "negation"),
    ("Smiling_Male_contextual_50", "0_0", "Portrait face photo of a smiling woman.", "target"),
    ("Smiling_Male_contextual_50", "0_0", "Portrait face photo of a blond woman.", "target"),
    ("Smiling_Male_contextual_50", "1_0", SMILING + "a neutral expression.", "target"),
    ("Smiling_Male_contextual_50", "1_0", "Portrait face photo of a smiling person.", "protected"),
    ("Smiling_Male_contextual_50", "1_0", "Portrait face photo of a smiling man.", "protected"),
    ("Smiling_Male_contextual_50", "1_0", SMILING + "a hat on his head.", "protected"),
    ("Smiling_Male_contextual_50", "1_0", SMILING + "long " * 50 + "hair.", "tokens"),
    ("Smiling_Young_contextual_50", "1_0", "Portrait face photo of a smiling girl.", "protected"),
    (
        "Smiling_Young_contextual_50",
        "1_1",
        "Portrait face photo of a smiling old man.",
        "protected",
    ),
    ("Young_Male_contextual_50", "1_1", "{start} no longer young man.", "target negation"),
    ("Smiling_Male_contextual_head_poses_50", "1_0", SMILING + "raised eyebrows.", "pose"),
    ("Smiling_Male_contextual_head_poses_50", "1_0", SMILING + "a turned-up nose.", "pose"),
    (
        "Smiling_Male_contextual_head_poses_50",
        "1_0",
        SMILING + "red hair, in full left profile.",
        "profile",
    ),
    (
        "Female_White_contextual_50",
        "1_1",
        "{start} 30-year-old woman with white hair.",
        "protected",
    ),
    ("Female_White_contextual_50", "1_1", "{start} 30-year-old Asian woman.", "protected"),
    ("Female_White_contextual_50", "0_0", "{start} 30-year-old White man.", "protected"),
    ("Female_White_contextual_50", "0_0", "{start} 30-year-old Black woman.", "target"),
    ("Female_White_contextual_50", "1_1", "{start} White woman with grey hair.", "age"),
    ("Female_White_contextual_50", "1_1", "{start} 130-year-old White woman.", "age"),
]


def new_failures(document, before, without):
    """The failures of `document` that `before` does not have, without some rules."""
    there = set(check.check_groups(before))
    return [f for f in check.check_groups(document) if f not in there and f.rule not in without]


@pytest.mark.parametrize(("name", "group", "prompt", "rule"), MUTATIONS)
def test_a_broken_prompt_fails_by_its_rule_and_place(name, group, prompt, rule):
    document = committed(name)
    document["cells"][group][0] = prompt.format(start=document["starts_with"])
    failures = new_failures(document, committed(name), OF_SETS)
    assert {failure.rule for failure in failures} == set(rule.split())
    assert {(failure.group, failure.number) for failure in failures} == {(group, 1)}


def _shout(document):
    document["cells"]["1_1"][3] = document["cells"]["1_1"][0].replace(",", "").rstrip(".") + " !"


def _same_age(document):
    text = f"{document['starts_with']} 30-year-old White woman with "
    document["cells"]["1_1"] = [f"{text}{number} freckles." for number in range(50)]


DAMAGES = [  # what is done to a file's content, rule that must fail, group
    (lambda d: d["cells"].pop("0_1"), "groups", None),
    (lambda d: d["cells"]["0_1"].pop(), "groups", "0_1"),
    (lambda d: d["cells"]["0_1"].append(7), "groups", "0_1"),
    (lambda d: d.pop("source"), "file", None),
    (lambda d: d.update(set="contextual"), "file", None),
    (lambda d: d.update(target="Happy"), "file", None),
    (lambda d: d.update(dataset="imagenet"), "file", None),
    (lambda d: d.update(starts_with="Photo of a"), "file", None),
    (_shout, "unique", "1_1"),
    (_same_age, "ages", "1_1"),
]


@pytest.mark.parametrize(("damage", "rule", "group"), DAMAGES)
def test_a_damaged_file_fails_by_its_rule(damage, rule, group):
    document = committed("Female_White_contextual_50")
    damage(document)
    failures = new_failures(document, committed("Female_White_contextual_50"), OF_SETS - {rule})
    assert {(failure.rule, failure.group) for failure in failures} == {(rule, group)}


def test_content_that_is_no_object_fails():
    assert [failure.rule for failure in check.check_groups([])] == ["file"]


@pytest.mark.parametrize(
    ("attribute", "prompt", "named", "contradicted"),
    [  # contradicted: values for which a word is found
        ("Smiling", "a man without even a hint of a smile", {0}, {0}),
        ("Smiling", "a man who isn\u2019t smiling", {0}, {0}),
        ("Smiling", "a woman, neither smiling nor frowning", {0}, {0}),
        ("Smiling", "a non-smiling man with smile lines", {0}, {0}),
        ("Smiling", "a man with no beard, smiling", {1}, {1}),
        ("Smiling", "a woman not wearing glasses, with a wide smile", {1}, {1}),
        ("Smiling", "a not unsmiling man", set(), set()),
        ("Smiling", "a stern man in a sombre tie", {0}, {0}),
        ("Smiling", "a man with a sombre tie", set(), set()),
        ("Smiling", "a woman with a neutral expression", {0}, {0}),
        ("Smiling", "a laughing woman with laugh lines", {1}, {1}),
        ("Smiling", "a bald man, beaming, with a straight, oval face", {1}, {1}),
        ("White", "an Afro-Dominican woman in a White hat", {0}, {0}),
        ("White", "a Kazakh man with an Afghan shawl", {0}, {0}),
        ("Smiling", "a woman with a calm, neutral face", {0}, {0}),
        ("Smiling", "a woman against a neutral background", set(), set()),
        ("Smiling", "a pensive man with frown lines", {0}, {0}),
        ("Smiling", "a deadpan man, his lips pressed together", {0}, {0}),
        ("Smiling", "a smiling man with a frown", {0, 1}, {0, 1}),
        ("Smiling", "a man with pressed hair and a straight nose", set(), set()),
        ("Male", "a woman with a man bun and mother-of-pearl earrings", {0}, {0}),
        ("Male", "a woman in her thirties", {0}, {0}),
        ("Male", "a person with her hair down", set(), {0}),
        ("Female", "a female toddler", {1}, {1}),
        ("Young", "a young man in an old-fashioned hat", {1}, {1}),
        ("Young", "a 25-year-old man", {1}, {1}),
        ("Young", "a woman in her late sixties", {0}, {0}),
        ("Young", "a not young woman", {0}, {0}),
        ("White", "a white-haired Black woman", {0}, {0}),
        ("White", "an Asian woman with white hair and a white hat", {0}, {0}),
        ("White", "a woman with white hair", set(), set()),
        ("White", "a White woman with black hair and black eyes", {1}, {1}),
        ("White", "a non-White man", {0}, {0}),
        ("White", "a female White baby", {1}, {1}),
        ("White", "a White woman of Asian descent", {1}, {0, 1}),
        ("White", "a White woman next to a Black man", {0, 1}, {0, 1}),
        ("White", "a woman who is not Asian", set(), set()),
    ],
)
def test_values_named(attribute, prompt, named, contradicted):
    found_named, found = values_named(attribute, f"Portrait face photo of {prompt}.")
    assert found_named == named
    assert {value for value, words in found.items() if words} == contradicted


def test_ages_are_read_in_figures_and_words():
    text = "a 7-year-old, an eighty-nine-year-old, one hundred years old, aged 34"
    assert sorted(ages(text)) == [7, 34, 89, 100]
    assert ages("a 40-year mortgage") == []


@pytest.mark.parametrize(
    ("text", "pose"),
    [
        ("head tilted slightly back", True),
        ("looking over the left shoulder", True),
        ("chin lowered", True),
        ("facing the camera", True),
        ("a three-quarter view", True),
        ("head tipped back a little", True),
        ("leaning her head slightly right", True),
        ("peeking over her bare shoulder", True),
        ("chin up a touch", True),
        ("smiling as drops run down her face", False),
        ("a braid over one shoulder", False),
        ("good-looking to everyone", False),
        ("damp-looking hair", False),
        ("raised eyebrows and a turned-up collar", False),
    ],
)
def test_head_poses(text, pose):
    assert bool(HEAD_POSE.search(text)) == pose


def test_token_estimate_is_no_lower_than_clip():
    # Counts by CLIP's own byte pair encoding (bpe_simple_vocab_16e6), start and end included.
    counts = {
        (
            "Portrait face photo of a wise-looking old man, not smiling at all, wearing a "
            "thin chain necklace, with thick white hair parted at the side, head turned "
            "right with the chin lifted."
        ): 42,
        (
            "Portrait face photo of a healthy-looking elderly person with a stern, "
            "unsmiling look, head turned right in a three-quarter view, wearing small stud "
            "earrings, with a short silver crop."
        ): 41,
        "Portrait face photo of a young female.": 10,
        (
            "Portrait face photo of an 87-year-old Vietnamese woman with a keffiyeh, locs "
            "and a five o'clock shadow."
        ): 31,
    }
    for prompt, tokens in counts.items():
        assert tokens <= check.estimate_tokens(prompt) <= 77
    assert check.estimate_tokens("a 25, a.") == 2 + 1 + 2 + 1 + 1 + 1


def test_command_line_lists_failures_by_prompt(tmp_path, capsys):
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
    document, name = varied(), "Smiling_Male_contextual_20.json"
    (good / name).write_text(json.dumps(document))
    document["cells"]["1_0"][4] = "Portrait face photo of a smiling man."
    (bad / name).write_text(json.dumps(document))
    assert check.main([str(good / name)]) == 0
    assert capsys.readouterr().out == ""
    assert check.main([str(good / name), str(bad / name)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # the word that says male, and that nothing says female
    for line in lines:
        assert "bad" in line
        assert "group 1_0 prompt 5" in line
        assert "smiling man" in line


def test_file_name_and_prefix_are_held(tmp_path):
    whole = varied(50, attributes=True)
    half = whole | {"set": "contextual_25"}
    half["cells"] = {group: prompts[:25] for group, prompts in whole["cells"].items()}
    whole["cells"]["0_1"].reverse()
    (tmp_path / "Smiling_Male_contextual_25.json").write_text(json.dumps(half))
    (tmp_path / "Smiling_Male_contextual_50.json").write_text(json.dumps(whole))
    (tmp_path / "Young_Male_contextual_50.json").write_text(json.dumps(whole))
    failures = check.check_file(tmp_path / "Smiling_Male_contextual_25.json")
    assert [(failure.rule, failure.group) for failure in failures] == [("prefix", "0_1")]
    failures = check.check_file(tmp_path / "Young_Male_contextual_50.json")
    assert [failure.rule for failure in failures] == ["file"]


@pytest.mark.parametrize("content", [None, "{", b"\xff\xfe\x00"])
def test_unreadable_file_is_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "Smiling_Male_plain.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stop:
        check.main([str(path)])
    assert stop.value.code == 2
    assert re.fullmatch(r"error: .*Smiling_Male_plain\.json.*\n", capsys.readouterr().err)


def test_tokenizer_folder_without_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--tokenizer"):
        check.tokenizer_count(tmp_path)


# --- the paper's instruction ---


def test_a_file_holds_the_text_that_is_sent_for_it():
    for path in FILES:
        document = committed(path.stem)
        if "contextual" not in path.stem:
            continue
        empty = document | {"cells": {f"{y}_{a}": [] for y, a in GROUPS}}
        empty["set"] = document["set"].replace("25", "50")
        sent = {f"{y}_{a}": build.request(empty, (y, a)) for y, a in GROUPS}
        assert document["source"]["instruction"] == sent
        assert document["starts_with"] in sent["0_0"]


def test_instruction_is_the_supplements():
    celeba = instruction("celeba", "Smiling", "Male", (0, 1), 50, head_poses=True)
    assert celeba == (
        "Generate 50 diverse text prompts for human face attributes that always include not "
        "smiling and male. Each prompt should also consider some of the following attributes: "
        "5 o'clock shadow, arched eyebrows, attractive, bags under eyes, bald, bangs, big lips, "
        "big nose, black hair, blurry, brown hair, bushy eyebrows, chubby, double chin, "
        "eyeglasses, goatee, grey hair, heavy makeup, high cheekbones, mouth slightly open, "
        "moustache, narrow eyes, no beard, oval face, pale skin, pointy nose, receding hairline, "
        "rosy cheeks, sideburns, straight hair, wavy hair, wearing earrings, wearing a hat, "
        "wearing lipstick, wearing necklace, wearing necktie, and young. Additionally, each "
        "prompt should include a variety of head poses, such as slight tilts, turns, and "
        "different head orientations (e.g., head turned slightly left, tilted upward, facing "
        "slightly downward) to ensure diversity in the generated image angles. The prompts "
        'should be for a "Portrait face photo of a," ensuring the image only contains the head '
        "part."
    )
    assert instruction("utkface", "Female", "White", (1, 1), 25) == (
        "Generate 25 diverse text prompts for human face attributes that always include female "
        "and White. Include details about facial expressions, hairstyles, and any other "
        "distinguishing features that can help in generating a realistic image. And also contain "
        'age start from 1 and end at 100. The prompts should be for a "Portrait face photo of '
        'a," ensuring the image only contains the face part.'
    )
    assert "young" not in instruction("celeba", "Smiling", "Young", (0, 0), 50)


# --- asking a language model ---


class ChatServer(ThreadingHTTPServer):
    """Chat completions on 127.0.0.1: follows `script`, one step a request, then answers well.

    Steps: "good", "short" (one prompt), "broken" (no JSON), "wrong" (prompts of no group), "echo"
    (holds the key), "empty", "array" (refuses response_format, then answers with an array in a code
    fence), "drop" (the connection breaks inside the answer), "slow", "page" (HTML), a status code.
    """

    def __init__(self, prompts: dict[str, list[str]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts, self.script, self.messages = prompts, [], []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass  # a client that gave up waiting


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = body["messages"][0]["content"]
        group = f"{int('include not smiling' not in message)}_{int(' and male.' in message)}"
        self.server.messages.append((group, message))
        step = self.server.script.pop(0) if self.server.script else "good"
        fenced = step == "array"
        if fenced and "response_format" in body:
            self.server.script.insert(0, "array")
            step = 400
        if isinstance(step, int):
            said = {"error": {"message": f"{step} for {self.headers['Authorization']}"}}
            return self.reply(step, json.dumps(said))
        number = int(re.match(r"Generate (\d+) ", message)[1])
        there = set(message.splitlines())
        texts = [prompt for prompt in self.server.prompts[group] if prompt not in there][:number]
        texts = {"short": texts[:1], "wrong": ["A cat."] * number}.get(step, texts)
        content = json.dumps({"prompts": texts})
        if fenced:
            content = f"Here they are:\n```json\n{json.dumps(texts, indent=1)}\n```"
        if step == "broken":
            content = "I cannot help with that."
        if step == "empty":
            content = None
        if step == "echo":
            content = json.dumps({"prompts": texts, "key": self.headers["Authorization"]})
        answer = {"role": "assistant", "content": content}
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": answer}],
        }
        if step == "slow":
            self.server.released.wait(10)
        if step == "page":
            return self.reply(200, "<html>hello</html>", "text/html")
        return self.reply(200, json.dumps(completion), drop=step == "drop")

    def reply(self, status, text, kind="application/json", drop=False):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(text[: len(text) // 2 if drop else None].encode())
        if drop:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(monkeypatch, no_pauses):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    chat = ChatServer(varied(50)["cells"])
    thread = threading.Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield chat
    chat.released.set()
    chat.shutdown()
    thread.join()
    chat.server_close()


def ask(server, out, capsys, *flags, number=4):
    """Run prompts.build: (exit code, stdout, stderr); the key is in nothing it leaves."""
    arguments = ["--target", "Smiling", "--protected", "Male", "--number", str(number)]
    arguments += ["--model", "gpt-4", "--base-url", server.url, "--out", str(out), *flags]
    code = 0
    try:
        build.main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, *(path.read_text() for path in out.parent.iterdir())):
        assert KEY not in text
    return code, printed.out, printed.err


def expected(number):
    groups = varied(50)["cells"]
    return {group: prompts[:number] for group, prompts in groups.items()}


SCRIPTS = [  # steps, requests in all
    (["good"], 4),
    (["short", "good"], 5),
    (["broken", "good"], 5),
    (["wrong", "short", "wrong", "good"], 7),
    (["array"] * 4, 5),
    (["echo"], 4),
    ([429, 429, "good"], 6),
    ([500, "good", "drop", "good"], 6),
]


@pytest.mark.parametrize(("script", "requests"), SCRIPTS)
def test_build_ends_with_a_checked_file(server, tmp_path, capsys, script, requests):
    server.script = list(script)
    out = tmp_path / "Smiling_Male_contextual_4.json"
    code, _, err = ask(server, out, capsys)
    assert (code, len(server.messages)) == (0, requests), err
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert check.check_file(out) == []
    document = json.loads(out.read_text())
    assert document["cells"] == expected(4)
    source = document["source"]
    assert source["model"] == "gpt-4"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", source["date"])
    assert instruction("celeba", "Smiling", "Male", (0, 1), 4) in source["instruction"]["0_1"]
    there = [answer["cell"] for answer in source["raw"] if STARTS_WITH in answer["answer"]]
    assert set(there) == {f"{y}_{a}" for y, a in GROUPS}


def test_the_model_is_told_what_is_missing_and_what_was_wrong(server, tmp_path, capsys):
    server.script = ["short", "wrong", "broken"]
    assert ask(server, tmp_path / "Smiling_Male_contextual_4.json", capsys)[0] == 0
    first, second, third, fourth = (message for group, message in server.messages if group == "0_0")
    there = expected(1)["0_0"][0]
    assert there not in first
    for message in (second, third, fourth):
        assert message.startswith("Generate 3 ")
        assert there in message
    assert "A cat. (does not start with" in third
    assert "held no list of prompts" in fourth


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (401, "refused the key"),
        (403, "refused access"),
        (404, "knows no such model (gpt-4)"),
        (400, "rejected the request"),
        (429, "429"),
        (500, "failed (500)"),
        (503, "failed (503)"),
        ("drop", "connection"),
        ("slow", "did not answer within 0.3 s"),
        ("page", "did not answer with a chat completion"),
    ],
)
def test_failure_is_one_sentence_and_what_there_is_is_kept(server, tmp_path, capsys, step, said):
    out = tmp_path / "Smiling_Male_contextual_4.json"
    server.script = ["good", "good", "short"] + [step] * 6
    flags = ["--timeout", "0.3"] if step == "slow" else []
    code, _, err = ask(server, out, capsys, *flags)
    assert code == 2
    errors = [line for line in err.splitlines() if not line.startswith("group ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert said in errors[0]
    assert not out.exists()

    partial = json.loads((tmp_path / f"{out.name}.partial").read_text())
    kept = {group: len(prompts) for group, prompts in partial["cells"].items()}
    assert kept == {"0_0": 4, "0_1": 4, "1_0": 1, "1_1": 0}
    server.script, server.messages = [], []
    assert ask(server, out, capsys)[0] == 0
    assert Counter(group for group, _ in server.messages) == {"1_0": 1, "1_1": 1}
    assert json.loads(out.read_text())["cells"] == expected(4)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_asking_ends_and_keeps_what_was_usable(server, tmp_path, capsys):
    server.script = ["short"] + ["wrong"] * 20
    out = tmp_path / "Smiling_Male_contextual_4.json"
    code, _, err = ask(server, out, capsys)
    assert code == 2
    assert "only 1 of 4 usable prompts for group 0_0" in err
    assert len(server.messages) == build.ROUNDS
    assert len(json.loads((tmp_path / f"{out.name}.partial").read_text())["cells"]["0_0"]) == 1


def test_a_partial_file_of_other_settings_is_not_taken_over(server, tmp_path, capsys):
    server.script = ["good", 404, 404]
    out = tmp_path / "Smiling_Male_contextual_4.json"
    assert ask(server, out, capsys)[0] == 2
    before = (tmp_path / f"{out.name}.partial").read_text()
    code, _, err = ask(server, out, capsys, number=5)
    assert code == 2
    assert "other settings" in err
    assert (tmp_path / f"{out.name}.partial").read_text() == before


def test_a_partial_file_without_an_answer_binds_to_no_words(server, tmp_path, capsys):
    server.script = [404, 404]
    out = tmp_path / "Smiling_Male_contextual_4.json"
    assert ask(server, out, capsys)[0] == 2
    assert not list(tmp_path.iterdir())
    document = build.new_document("celeba", "Smiling", "Male", 5, False, "another")
    out.with_name(f"{out.name}.partial").write_text(json.dumps(document))  # of an earlier version
    server.script = []
    assert ask(server, out, capsys)[0] == 0
    assert json.loads(out.read_text())["cells"] == expected(4)


def test_an_existing_file_is_not_overwritten(server, tmp_path, capsys):
    out = tmp_path / "Smiling_Male_contextual_4.json"
    out.write_text("mine")
    code, _, err = ask(server, out, capsys)
    assert code == 2
    assert "exists" in err
    assert out.read_text() == "mine"
    assert server.messages == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "Happy"], "--target Happy"),
        (["--protected", "White"], "--protected White"),
        (["--protected", "Smiling"], "both Smiling"),
        (["--number", "0"], "--number 0"),
        (["--timeout", "0"], "--timeout 0"),
        (["--base-url", "localhost:1"], "--base-url"),
    ],
)
def test_a_wrong_flag_is_one_sentence(server, tmp_path, capsys, flags, said):
    code, _, err = ask(server, tmp_path / "a.json", capsys, *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("key", ["", "two words", "sk-\u00fcber-secret", "sk-line\nbreak"])
def test_an_unusable_key_is_one_sentence_without_it(server, tmp_path, capsys, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    code, _, err = ask(server, tmp_path / "a.json", capsys)
    assert code == 2
    assert err.startswith("error: OPENAI_API_KEY")
    assert not key or key not in err
    assert server.messages == []


def test_ages_are_spread_while_asking():
    document = build.new_document("utkface", "Female", "White", 12, False, "m")
    start = f"{document['starts_with']} "
    thirties = [f"{start}{age}-year-old White woman." for age in range(30, 39)]
    refused = build.accept(document, (1, 1), thirties)
    kept = document["cells"]["1_1"]
    # 12 places, 11 bands: both bands touched and one repeat fit, the rest must wait for other ages.
    assert len(kept) == 3
    assert all("needed for the ages" in reasons for _, reasons in refused)
    assert "Ages still missing: 1-5, 6-15" in build.request(document, (1, 1))
    build.accept(document, (1, 1), [f"{start}{a}-year-old White woman." for a in range(1, 101, 2)])
    assert len(kept) == 12
    assert check.empty_bands(kept) == []


