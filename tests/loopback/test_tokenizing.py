"""Tokens on the request path: each source, the deadline, and what happens when a source is slow, broken or wrong."""

import asyncio
import json
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest

from beaconry.config.gateway import Tokens
from beaconry.engine_model.tokenizer import encode, render_chat
from beaconry.io.engine.requests import parse_generation
from beaconry.io.engine_tokens import ASKED_AT_ONCE, FAILURES, PAUSE_S, EngineTokens
from beaconry.io.loading_tokens import LoadingTokens
from beaconry.io.local_tokens import INLINE_CHARS, LocalTokens
from beaconry.io.model_directory import local_tokens
from beaconry.io.prompts import Keyed, Prompts
from beaconry.io.sim_tokens import sim_tokens
from beaconry.io.tokenizing import SET_ASIDE_S, WRONG_RUNNING, Tokenizing, keys_of
from beaconry.io.upstream import UpstreamPool
from beaconry.kvindex.block_keys import BlockKeys
from beaconry.values.block_hash import DEFAULT_SEED, BlockHasher, Extras, MediaItem
from beaconry.values.endpoint import Endpoint, EngineType, KvEventsAddress
from beaconry.values.errors import OperatorError
from beaconry.values.kv_events import KvBlocks
from beaconry.values.request import Api
from beaconry.wire.piece_cache import PieceCache
from beaconry.wire.tokens import NoTokensError, PromptTokens, Reason, TokenSource

PATIENCE_S = 20.0
"""A deadline that no busy machine misses."""
U = {"role": "user", "content": "hi"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}


def chat(*messages, **fields):
    return json.dumps({"model": "m", "messages": messages or [U], **fields}).encode()


def text(prompt, **fields):
    return json.dumps({"model": "m", "prompt": prompt, **fields}).encode()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def settled(source):
    """Wait until loading has ended, and what follows from it has been done."""
    await asyncio.wait((source._loading,))
    await asyncio.sleep(0)


def test_while_a_tokenizer_is_loaded_the_next_source_is_asked_and_the_trace_says_so():
    async def main():
        go = threading.Event()

        def load():
            assert go.wait(PATIENCE_S)
            return Telling([1], TokenSource.LOCAL)

        source = LoadingTokens("the tokenizer", load)
        tokens = tokenizing(source, Telling([2]))
        before = await tokens.tokens(Api.COMPLETIONS, text("x"))
        assert (list(before.ids), before.told) == ([2], "engine; loading")
        go.set()
        await settled(source)
        after = await tokens.tokens(Api.COMPLETIONS, text("x"))
        assert (list(after.ids), after.told) == ([1], "local")

    asyncio.run(main())


@pytest.mark.parametrize("fault", [OperatorError("tokenizer.json: no such file"), ValueError("odd")])
def test_a_tokenizer_that_cannot_be_loaded_is_logged_and_stays_out_of_the_way(fault, caplog):
    async def main():
        def load():
            raise fault

        source = LoadingTokens("the tokenizer in /m", load)
        await settled(source)
        found = await tokenizing(source, Telling([2])).tokens(Api.COMPLETIONS, text("x"))
        assert (list(found.ids), found.told) == ([2], "engine; failed")
        assert found.detail == f"the tokenizer in /m cannot be loaded: {fault}"

    asyncio.run(main())
    (record,) = caplog.records
    assert "cannot be loaded" in record.getMessage()
    assert bool(record.exc_info) is isinstance(fault, ValueError)


def test_a_tokenizer_that_comes_late_is_complained_of_and_used(caplog):
    async def main():
        go = threading.Event()
        source = LoadingTokens("the tokenizer", lambda: go.wait(PATIENCE_S) and Telling([1]), within_s=0.0)
        while not caplog.records:
            await asyncio.sleep(0.001)
        found = await tokenizing(source).tokens(Api.COMPLETIONS, text("x"))
        assert (found.told, found.detail) == ("none; loading", "the tokenizer has not been loaded within 0 s")
        go.set()
        await settled(source)
        assert list((await tokenizing(source).tokens(Api.COMPLETIONS, text("x"))).ids) == [1]

    asyncio.run(main())


def tokenizing(*sources, deadline_s=PATIENCE_S, now_s=None):
    return Tokenizing(sources, now_s or asyncio.get_running_loop().time, deadline_s=deadline_s)


def local(executor, encoding=encode, marker="<|end|>", limit=1_000_000):
    """A local source whose prompt is the text, or the last message's."""

    def prompt(ask, body):
        return getattr(ask, "text", None) or ask.messages[-1]["content"]

    return LocalTokens(prompt, encoding, executor, PieceCache(marker, limit), (array("I", [1]), array("I", [2])))


class Gated:
    """An encoder that stands still until its gate is open."""

    def __init__(self):
        self.gate = threading.Event()

    def __call__(self, piece):
        assert self.gate.wait(PATIENCE_S)
        return encode(piece)


class Refusing:
    """A source that has nothing, or breaks."""

    kind = TokenSource.LOCAL

    def __init__(self, error=None, later=None):
        self.error = error or NoTokensError(Reason.TEMPLATE, "no")
        self.on_later = later

    def begin(self, ask, body):
        if self.on_later is not None:
            return self.on_later
        raise self.error


class Telling:
    """A source that has these tokens."""

    def __init__(self, ids, kind=TokenSource.ENGINE):
        self.ids = array("I", ids)
        self.kind = kind

    def begin(self, ask, body):
        return self.ids, ()


# -- the sources in order


def test_token_ids_that_the_client_sent_are_used_as_they_are():
    async def main():
        made = tokenizing()
        found = made.begin(Api.COMPLETIONS, text([1, 2, 3], cache_salt="s"))
        assert (found.ids, found.source, found.reason) == (array("I", [1, 2, 3]), TokenSource.GIVEN, None)
        assert found.extras == Extras(salt="s")
        assert made.statistics().told == {(TokenSource.GIVEN, None): 1}

    asyncio.run(main())


def test_without_a_source_the_reason_is_told():
    async def main():
        found = tokenizing().begin(Api.CHAT, chat())
        assert (found.ids, found.told) == (None, "none; no-source")
        assert tokenizing().begin(Api.EMBEDDINGS, b"{}").reason is Reason.API
        assert tokenizing().begin(Api.CHAT, b"{").reason is Reason.INVALID

    asyncio.run(main())


def test_the_next_source_is_asked_and_the_first_refusal_is_told():
    async def main():
        made = tokenizing(Refusing(), Telling([7]))
        found = made.begin(Api.CHAT, chat())
        assert (found.ids, found.source, found.reason) == (array("I", [7]), TokenSource.ENGINE, Reason.TEMPLATE)
        assert found.told == "engine; template"
        assert made.statistics().told == {(TokenSource.ENGINE, Reason.TEMPLATE): 1}

    asyncio.run(main())


def test_a_source_that_fails_after_a_wait_gives_way_to_the_next():
    async def fails(within_s):
        raise NoTokensError(Reason.FAILED, "broken")

    async def main():
        made = tokenizing(Refusing(later=fails), Refusing(), Telling([7]))
        found = await made.tokens(Api.CHAT, chat())
        assert found.told == "engine; failed"
        nothing = tokenizing(Refusing(later=fails), Refusing())
        assert (await nothing.tokens(Api.CHAT, chat())).told == "none; failed"

    asyncio.run(main())


def test_a_source_that_breaks_breaks_no_request_and_is_logged_once_a_minute(caplog):
    async def breaks(within_s):
        raise ZeroDivisionError

    async def main():
        made = tokenizing(Refusing(KeyError("x")), Refusing(later=breaks), Telling([7]))
        for _ in range(3):
            found = await made.tokens(Api.CHAT, chat())
            assert found.told == "engine; failed"
            assert "KeyError" in found.detail

    asyncio.run(main())
    assert len(caplog.records) == 1


def test_what_takes_too_long_is_left_at_the_deadline():
    async def never(within_s):
        try:
            await asyncio.wait_for(asyncio.Event().wait(), within_s)
        except TimeoutError:
            raise NoTokensError(Reason.DEADLINE, "late") from None

    async def main():
        made = tokenizing(Refusing(later=never), Telling([7]), deadline_s=0.01)
        found = await asyncio.wait_for(made.tokens(Api.CHAT, chat()), PATIENCE_S)
        assert found.reason is Reason.DEADLINE

    asyncio.run(main())


# -- a source that is wrong


def test_a_source_that_counts_wrong_is_set_aside_for_that_kind_of_request_and_tried_again_later(caplog):
    async def main():
        clock = [100.0]
        made = tokenizing(Telling([1, 2], TokenSource.LOCAL), Telling([7]), now_s=lambda: clock[0])
        for _ in range(WRONG_RUNNING):
            found = made.begin(Api.CHAT, chat())
            assert found.source is TokenSource.LOCAL
            made.reported(found, 3)
        assert made.begin(Api.CHAT, chat()).told == "engine; distrusted"
        assert made.begin(Api.COMPLETIONS, text("a")).source is TokenSource.LOCAL
        assert made.statistics().set_aside == ((TokenSource.LOCAL, "chat"),)
        clock[0] += SET_ASIDE_S
        again = made.begin(Api.CHAT, chat())
        assert again.source is TokenSource.LOCAL
        made.reported(again, 2)
        assert made.statistics().set_aside == ()
        assert made.statistics().disagreed[TokenSource.LOCAL] == WRONG_RUNNING
        assert made.statistics().agreed[TokenSource.LOCAL] == 1

    asyncio.run(main())
    assert "beaconry doctor" in caplog.text


def test_one_right_count_forgives_the_wrong_ones_before_it():
    async def main():
        made = tokenizing(Telling([1, 2]))
        for count in [3] * (WRONG_RUNNING - 1) + [2] + [3] * (WRONG_RUNNING - 1):
            made.reported(made.begin(Api.CHAT, chat()), count)
        assert made.statistics().set_aside == ()

    asyncio.run(main())


def test_tokens_that_the_client_sent_or_nobody_told_are_not_judged():
    async def main():
        made = tokenizing()
        for _ in range(WRONG_RUNNING):
            made.reported(made.begin(Api.COMPLETIONS, text([1])), 9)
            made.reported(made.begin(Api.CHAT, chat()), 9)
        assert made.statistics().set_aside == ()

    asyncio.run(main())


# -- the local source


def test_a_short_prompt_is_tokenized_at_once_with_what_goes_around_it(executor):
    async def main():
        made = tokenizing(local(executor))
        found = made.begin(Api.COMPLETIONS, text("hello"))
        assert found.ids == array("I", [1, *encode("hello"), 2])
        bare = made.begin(Api.COMPLETIONS, text("hello", add_special_tokens=False))
        assert bare.ids == encode("hello")

    asyncio.run(main())


def test_a_long_prompt_is_tokenized_by_a_thread_and_at_once_when_it_comes_again(executor):
    threads = set()

    def encoding(piece):
        threads.add(threading.current_thread())
        return encode(piece)

    async def main():
        source = local(executor, encoding)
        made = tokenizing(source)
        long = "abcd" * INLINE_CHARS
        waiting = made.begin(Api.COMPLETIONS, text(long))
        assert not isinstance(waiting, PromptTokens)
        found = await waiting
        assert found.ids == array("I", [1, *encode(long), 2])
        assert threads.isdisjoint({threading.main_thread()})
        grown = made.begin(Api.COMPLETIONS, text(f"{long}<|end|>more"))
        assert grown.ids == array("I", [1, *encode(f"{long}<|end|>more"), 2])
        statistics = source.statistics()
        assert (statistics.chars, statistics.pending_chars) == (len(long), 0)
        assert statistics.busy_s > 0

    asyncio.run(main())


def test_a_piece_too_large_for_the_cache_is_tokenized_all_the_same(executor):
    async def main():
        made = tokenizing(local(executor, limit=100))
        long = "abcd" * INLINE_CHARS
        for _ in range(2):
            assert (await made.tokens(Api.COMPLETIONS, text(long))).ids == array("I", [1, *encode(long), 2])

    asyncio.run(main())


def test_requests_for_the_same_text_share_the_work(executor):
    calls = []

    def encoding(piece):
        calls.append(piece)
        return encode(piece)

    async def main():
        made = tokenizing(local(executor, encoding))
        long = text("abcd" * INLINE_CHARS)
        found = await asyncio.gather(*(made.tokens(Api.COMPLETIONS, long) for _ in range(5)))
        assert len({bytes(one.ids) for one in found}) == 1
        assert len(calls) == 1

    asyncio.run(main())


def test_what_is_late_is_done_all_the_same_so_that_the_next_turn_finds_it(executor):
    encoding = Gated()

    async def main():
        source = local(executor, encoding)
        made = tokenizing(source, deadline_s=0.05)
        long = "abcd" * INLINE_CHARS
        found = await made.tokens(Api.COMPLETIONS, text(long))
        assert found.told == "none; deadline"
        encoding.gate.set()
        while source.statistics().pending_chars:
            await asyncio.sleep(0.001)
        assert made.begin(Api.COMPLETIONS, text(long)).told == "local"

    asyncio.run(main())


def test_nobody_waits_for_what_is_known_to_be_late(executor):
    encoding = Gated()

    async def main():
        made = tokenizing(local(executor, encoding), deadline_s=0.5)
        huge = text("abcd" * 200_000)
        begun_s = asyncio.get_running_loop().time()
        found = await made.tokens(Api.COMPLETIONS, huge)
        # the first guess of the speed says 0.8 s; with a thread that stands still, waiting would take the whole deadline
        assert "would take about" in found.detail
        assert asyncio.get_running_loop().time() - begun_s < 0.4
        for _ in range(4):
            found = await made.tokens(Api.COMPLETIONS, text("abcd" * 200_000 + str(_)))
        assert found.reason is Reason.BUSY
        encoding.gate.set()

    asyncio.run(main())


def test_a_body_too_large_to_render_in_time_and_images_are_refused(executor):
    async def main():
        made = tokenizing(local(executor))
        assert made.begin(Api.CHAT, chat({"role": "user", "content": "x" * 1_100_000})).reason is Reason.DEADLINE
        assert made.begin(Api.CHAT, chat(IMAGE)).reason is Reason.MEDIA

    asyncio.run(main())


def test_a_client_that_leaves_ends_the_wait_and_not_the_work(executor):
    encoding = Gated()

    async def main():
        source = local(executor, encoding)
        made = tokenizing(source)
        long = text("abcd" * INLINE_CHARS)
        task = asyncio.ensure_future(made.tokens(Api.COMPLETIONS, long))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        encoding.gate.set()
        while source.statistics().pending_chars:
            await asyncio.sleep(0.001)
        assert made.begin(Api.COMPLETIONS, long).told == "local"

    asyncio.run(main())


def test_a_tokenizer_that_breaks_in_its_thread_breaks_no_request(executor):
    def encoding(piece):
        raise ZeroDivisionError

    async def main():
        source = local(executor, encoding)
        found = await tokenizing(source).tokens(Api.COMPLETIONS, text("abcd" * INLINE_CHARS))
        assert found.told == "none; failed"
        assert source.statistics().pending_chars == 0

    asyncio.run(main())


# -- simulated engines


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Api.CHAT, chat({"role": "system", "content": "be brief"}, U)),
        (Api.CHAT, chat(U, {"role": "assistant", "content": "a<|end|>b", "tool_calls": [{"id": 1}]}, U, tools=[{"name":  "ü"}])),
        (Api.CHAT, chat({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]})),
        (Api.CHAT, chat({"role": "assistant", "content": "x", "tool_calls": None}, U, tools=None)),
        (Api.COMPLETIONS, text("one <|user|> two")),
    ],
)  # fmt: skip
def test_a_simulated_engines_tokens_are_those_it_will_see(executor, api, body):
    async def main():
        found = await tokenizing(sim_tokens(executor)).tokens(api, body)
        asked = parse_generation(body, chat=api is Api.CHAT, models=("m",), max_model_len=10_000)
        assert found.ids == asked.prompts[0].tokens

    asyncio.run(main())


def test_what_a_simulated_engine_would_refuse_has_no_tokens(executor):
    async def main():
        found = tokenizing(sim_tokens(executor)).begin(Api.CHAT, chat({"role": "nobody", "content": "x"}))
        assert found.told == "none; invalid"

    asyncio.run(main())


# -- a model's directory

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}))
    return tmp_path


def ids_of(model, rendered):
    from tokenizers import Tokenizer

    return array("I", Tokenizer.from_file(str(model / "tokenizer.json")).encode(rendered, add_special_tokens=False).ids)


def test_prompts_are_tokenized_by_the_directory_that_the_operator_names_read_once(model, executor):
    async def main():
        knobs = Tokens(model_dirs={"m": str(model)}, ask_engines=False, deadline_s=PATIENCE_S)
        prompts = Prompts(knobs, executor, None, asyncio.get_running_loop().time)
        for name in ("a", "b"):
            prompts.seen(
                Endpoint(
                    name=name,
                    host="h",
                    port=1,
                    model="m",
                    kv_events=KvEventsAddress(endpoint="tcp://127.0.0.1:1"),
                    kv_blocks=KvBlocks(block_tokens=16, algorithm="fast", seed=DEFAULT_SEED),
                )
            )
        (source,) = prompts._local.values()
        await settled(source)
        found = prompts.begin("m", Api.CHAT, chat({"role": "user", "content": "word " * 20}))
        keyed = found if isinstance(found, Keyed) else await found
        assert keyed.tokens.told == "local"
        assert len(keyed.keys) == len(keyed.tokens.ids) // 16 > 3

    asyncio.run(main())


def test_a_model_without_conversations_has_its_texts_tokenized(model, executor):
    (model / "tokenizer_config.json").write_text("{}")

    async def main():
        made = tokenizing(local_tokens(model, executor))
        assert (await made.tokens(Api.COMPLETIONS, text("hi"))).ids == ids_of(model, "hi")
        assert (await made.tokens(Api.CHAT, chat())).reason is Reason.TEMPLATE

    asyncio.run(main())


def test_a_models_directory_gives_its_tokens_and_a_turn_costs_only_itself(model, executor):
    async def main():
        source = local_tokens(model, executor)
        made = tokenizing(source)
        found = await made.tokens(Api.CHAT, chat())
        assert found.ids == ids_of(model, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
        missed = source.statistics().cache.missed
        more = (U, {"role": "assistant", "content": "yes"}, U)
        again = await made.tokens(Api.CHAT, chat(*more))
        rendered = (
            "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in more) + "<|im_start|>assistant\n"
        )
        assert again.ids == ids_of(model, rendered)
        assert source.statistics().cache.missed == missed + 1

    asyncio.run(main())


def test_which_file_has_the_template_follows_transformers(model, executor):
    def rendered(**fields):
        async def main():
            found = await tokenizing(local_tokens(model, executor)).tokens(Api.CHAT, chat(**fields))
            return found.ids

        return asyncio.run(main())

    tools = [{"type": "function", "function": {"name": "f"}}]
    listed = [{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "listed for tools"}]
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert rendered() == ids_of(model, "listed")
    assert rendered(tools=tools) == ids_of(model, "listed for tools")
    (model / "chat_template.jinja").write_text("alone")
    assert rendered() == ids_of(model, "alone")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("alone for tools")
    assert rendered(tools=tools) == ids_of(model, "alone for tools")
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text("{}")
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert rendered() == ids_of(model, "of the processor")


def test_a_template_of_the_operators_stands_for_the_engines_flag(model, executor):
    async def main():
        source = local_tokens(model, executor, template="mine {{ strftime_now('%Y') }}", strftime_now=lambda form: form)
        found = await tokenizing(source).tokens(Api.CHAT, chat())
        assert found.ids == ids_of(model, "mine %Y")

    asyncio.run(main())


def test_models_that_vllm_renders_without_template_are_refused_but_for_plain_prompts(model, executor):
    (model / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))

    async def main():
        made = tokenizing(local_tokens(model, executor))
        assert made.begin(Api.CHAT, chat()).reason is Reason.TEMPLATE
        assert made.begin(Api.COMPLETIONS, text("a")).source is TokenSource.LOCAL

    asyncio.run(main())


def test_a_directory_that_cannot_be_used_is_named_with_the_remedy(model, executor):
    (model / "tokenizer_config.json").write_text("[]")
    with pytest.raises(OperatorError, match=r"tokenizer_config\.json"):
        local_tokens(model, executor)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "x"}]}))
    with pytest.raises(OperatorError, match="chat_template"):
        local_tokens(model, executor)
    (model / "tokenizer.json").unlink()
    with pytest.raises(OperatorError, match="the engines are asked for tokens"):
        local_tokens(model, executor)


# -- engines


class Engine:
    """Answers POSTs with what the script says: a status and a body, or nothing at all."""

    def __init__(self):
        self.answers = []
        self.asked = []

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *_ = head.split(b"\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.asked.append((line.split()[1].decode(), json.loads(await reader.readexactly(length))))
                answer = self.answers.pop(0) if self.answers else (200, {"tokens": [5, 6]})
                if answer is None:
                    await reader.read()  # until the client has had enough
                    return
                status, body = answer
                data = json.dumps(body).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def with_engine(test, *, engine_type=EngineType.VLLM):
    """Run `test(engine, source, clock)`; the clock stands still unless the test moves it."""

    async def main():
        engine, clock = Engine(), [100.0]
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(name="e", host="127.0.0.1", port=port, model="m", engine=engine_type)
        async with asyncio.TaskGroup() as tasks:
            pool = UpstreamPool("127.0.0.1", port, PATIENCE_S, tasks.create_task)
            source = EngineTokens(lambda: [endpoint], lambda _: pool, lambda: clock[0])
            await asyncio.wait_for(test(engine, source, clock), PATIENCE_S)
            pool.abort()
            server.close()

    asyncio.run(main())


def test_an_engine_tells_the_tokens_of_text_and_conversations():
    async def test(engine, source, clock):
        made = tokenizing(source)
        assert (await made.tokens(Api.COMPLETIONS, text("a"))).ids == array("I", [5, 6])
        found = await made.tokens(Api.CHAT, chat(cache_salt="s"))
        assert (found.told, found.extras.salt) == ("engine", "s")
        assert [path for path, _ in engine.asked] == ["/tokenize", "/tokenize"]
        assert engine.asked[0][1] == {"model": "m", "prompt": "a", "add_special_tokens": True}
        assert engine.asked[1][1]["messages"] == [U]

    with_engine(test)


def test_an_engine_renders_images_with_their_hashes():
    async def test(engine, source, clock):
        features = {"mm_hashes": {"image": ["h"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 2}]}}
        engine.answers = [(200, {"token_ids": [1, 9, 9, 2], "features": features})]
        found = await tokenizing(source).tokens(Api.CHAT, chat(IMAGE))
        assert found.ids == array("I", [1, 9, 9, 2])
        assert found.extras.items == (MediaItem(identifier="h", offset=1, length=2),)
        assert engine.asked[0][0] == "/v1/chat/completions/render"

    with_engine(test)


@pytest.mark.parametrize(
    ("answer", "body", "reason"),
    [
        ((403, {}), chat(IMAGE), Reason.MEDIA),
        ((400, {}), chat(), Reason.INVALID),
        ((404, {}), chat(), Reason.FAILED),
        ((500, {}), chat(), Reason.FAILED),
        ((200, {"x": 1}), chat(), Reason.FAILED),
        ((200, {"tokens": [1], "x": "x" * 9_000_000}), chat(), Reason.FAILED),
    ],
)
def test_an_engine_that_does_not_tell_is_a_reason(answer, body, reason):
    async def test(engine, source, clock):
        engine.answers = [answer]
        found = await tokenizing(source).tokens(Api.CHAT, body)
        assert (found.ids, found.reason) == (None, reason)

    with_engine(test)


def test_an_engine_that_fails_several_times_running_is_left_alone_for_a_while():
    async def test(engine, source, clock):
        engine.answers = [(500, {})] * (FAILURES + 1)
        made = tokenizing(source)
        for _ in range(FAILURES):
            assert (await made.tokens(Api.CHAT, chat())).reason is Reason.FAILED
        assert "asked again soon" in (await made.tokens(Api.CHAT, chat())).detail
        assert len(engine.asked) == FAILURES
        clock[0] += PAUSE_S
        assert "500" in (await made.tokens(Api.CHAT, chat())).detail
        clock[0] += PAUSE_S
        assert "asked again soon" in (await made.tokens(Api.CHAT, chat())).detail
        clock[0] += PAUSE_S
        assert (await made.tokens(Api.CHAT, chat())).told == "engine"
        assert (await made.tokens(Api.CHAT, chat())).told == "engine"

    with_engine(test)


def test_an_engine_that_hangs_costs_a_request_its_deadline_and_no_more():
    async def test(engine, source, clock):
        engine.answers = [None]
        found = await tokenizing(source, deadline_s=0.02).tokens(Api.CHAT, chat())
        assert found.ids is None
        assert "no complete answer" in found.detail

    with_engine(test)


def test_questions_are_bounded_in_number_and_size():
    async def test(engine, source, clock):
        engine.answers = [None] * ASKED_AT_ONCE
        made = tokenizing(source)
        tasks = [asyncio.ensure_future(made.tokens(Api.CHAT, chat())) for _ in range(ASKED_AT_ONCE)]
        await asyncio.sleep(0)
        assert (await made.tokens(Api.CHAT, chat())).reason is Reason.BUSY
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        engine.answers.clear()
        large = chat({"role": "user", "content": "x" * 1_100_000})
        assert (await made.tokens(Api.CHAT, large)).reason is Reason.DEADLINE
        assert (await made.tokens(Api.CHAT, chat())).told == "engine"

    with_engine(test)


def test_engines_that_do_not_tokenize_conversations_are_not_asked():
    async def test(engine, source, clock):
        assert (await tokenizing(source).tokens(Api.CHAT, chat())).reason is Reason.NO_SOURCE
        assert engine.asked == []

    with_engine(test, engine_type=EngineType.LLAMACPP)


# -- keys


def test_keys_computed_in_slices_are_those_computed_at_once():
    async def main():
        tokens = encode(render_chat([("user", "word " * 20_000)]))
        block_keys = BlockKeys(BlockHasher(16, "sha256"))
        turns = 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        found = await keys_of(block_keys, tokens, Extras())
        other.cancel()
        assert found == BlockKeys(block_keys.hasher).keys(tokens)
        assert turns >= 5

    asyncio.run(main())
