import asyncio
import doctest
import importlib.util
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlkd.engines
import rlkd.engines.logprobs
from rlkd.engines import Completion, EngineError, Sampling, TokenScores, open_engine, run
from rlkd.engines.base import check_choices, check_prompts, check_requests, distinct
from rlkd.engines.server import ServerEngine
from rlkd.engines.transformers import TransformersEngine
from rlkd.engines.vllm import VLLMEngine
from rlkd.registry import SpecError


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("stop", "\n"),
        ("stop", ("",)),
        ("seed", -1),
        ("json_schema", "{}"),
    ],
)
def test_a_sampling_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})


def test_the_total_of_a_score_is_the_sum_over_its_tokens():
    scored = TokenScores((-0.5, -1.25))
    assert (scored.n_tokens, scored.total) == (2, -1.75)
    assert (TokenScores(()).n_tokens, TokenScores(()).total) == (0, 0)


def test_an_engine_error_names_the_engine_and_the_way_out_and_pickles():
    error = pickle.loads(pickle.dumps(EngineError("transformers:x", "it broke.", "Fix it.")))
    assert str(error) == "transformers:x: it broke. Fix it."
    assert (error.engine, error.what, error.way_out) == ("transformers:x", "it broke.", "Fix it.")


@given(st.lists(st.sampled_from(["a", "b", "c"]) | st.lists(st.just({"role": "user", "content": "a"}), max_size=2)))
def test_distinct_items_and_indices_restore_the_list(items):
    unique, where = distinct(items)
    assert [unique[place] for place in where] == items
    assert all(unique.index(item) == place for place, item in enumerate(unique))


@pytest.mark.parametrize("prompts", ["one text", [3], [None], [[]], [["text"]], [[{"role": "user"}]]])
def test_a_wrong_list_of_prompts_is_refused(prompts):
    with pytest.raises(TypeError, match="expected a"):
        check_prompts(prompts)


@pytest.mark.parametrize("request_", ["text", ("a", "b", "c"), ("a", None), (3, "b")])
def test_a_wrong_pair_of_prompt_and_continuation_is_refused(request_):
    with pytest.raises(TypeError, match="expected a"):
        check_requests([request_])


@pytest.mark.parametrize("choices", ["yes", [], ["yes", " "], ["yes", " Yes"]])
def test_choices_that_a_model_cannot_distinguish_are_refused(choices):
    with pytest.raises(ValueError, match="choices"):
        check_choices(choices)


def test_run_returns_the_result_in_synchronous_code():
    assert run(double(4)) == 8


def test_run_works_inside_a_running_loop_of_another_thread():
    async def synchronous_inside():
        return run(double(4))

    assert asyncio.run(synchronous_inside()) == 8


def test_run_raises_what_the_coroutine_raises():
    async def fail():
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        run(fail())


def test_run_called_by_a_coroutine_that_it_runs_says_so_instead_of_hanging():
    async def nested():
        return run(double(1))

    with pytest.raises(RuntimeError, match="await the coroutine"):
        run(nested())


def test_callers_in_many_threads_share_one_loop():
    loops = []

    async def note():
        loops.append(asyncio.get_running_loop())

    threads = [threading.Thread(target=lambda: run(note())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loops) == 8
    assert len(set(loops)) == 1


INTERRUPTED = """
import asyncio, signal, threading, os, time
# Where the tests run in the background of a shell, it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from rlkd.engines import run
ended = threading.Event()
async def wait():
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        ended.set()
        raise
try:
    run(wait())
except KeyboardInterrupt:
    print("interrupted", ended.wait(5))
"""


def test_an_interrupt_of_the_caller_cancels_the_coroutine():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "interrupted True", done.stderr
    assert time.monotonic() - start < 15


def _double_in_child(queue):
    queue.put(run(double(21)))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_run_works_in_a_forked_child_after_use_in_the_parent():
    run(double(1))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_double_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=20) == 42
    finally:
        child.join(10)


def test_importing_the_engines_loads_no_model_library():
    code = (
        "import sys, rlkd.engines; rlkd.engines.open_engine('transformers:x');"
        "rlkd.engines.open_engine('http://h:1/v1#m', timeout=3.0);"
        "rlkd.engines.open_engine('vllm:x');"
        "names = ('torch', 'transformers', 'openai', 'vllm');"
        "print([name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_spec_names_the_model_in_this_process():
    engine = open_engine("transformers:some/model", batch_tokens=64)
    assert isinstance(engine, TransformersEngine)
    assert (engine.name, engine.batch_tokens, engine.guided) == ("transformers:some/model", 64, False)


def test_a_spec_may_carry_options_of_the_engine():
    engine = open_engine("transformers:some/model?dtype=bfloat16&adapter=runs/gsrm")
    assert (engine.model, engine.dtype, engine.adapter) == ("some/model", "bfloat16", "runs/gsrm")
    assert engine.name == "transformers:some/model+runs/gsrm@bfloat16"
    with pytest.raises(ValueError, match=r"no option 'dtyp'. Did you mean 'dtype'\?"):
        open_engine("transformers:some/model?dtyp=bfloat16")
    with pytest.raises(ValueError, match="expected 'auto', 'float32'"):
        open_engine("transformers:some/model?dtype=float8")


def test_a_spec_names_a_model_under_vllm_with_its_options():
    engine = open_engine("vllm:some/model?dtype=float32&max_model_len=512&gpu_memory_utilization=0.4", adapter="a/b")
    assert isinstance(engine, VLLMEngine)
    assert (engine.model, engine.dtype, engine.max_model_len) == ("some/model", "float32", 512)
    assert (engine.gpu_memory_utilization, engine.adapter, engine.guided) == (0.4, "a/b", True)
    assert engine.name == "vllm:some/model+a/b@float32"
    again = pickle.loads(pickle.dumps(engine))
    assert (again.name, again.max_model_len) == (engine.name, 512)
    with pytest.raises(SpecError, match="max_model_len='long', expected a number"):
        open_engine("vllm:some/model?max_model_len=long")
    with pytest.raises(SpecError, match="no option 'device'"):
        open_engine("vllm:some/model?device=cpu")
    with pytest.raises(ValueError, match="gpu_memory_utilization"):
        open_engine("vllm:some/model?gpu_memory_utilization=40")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_under_vllm_says_what_to_install_where_vllm_is_missing():
    engine = open_engine("vllm:some/model")
    for results in (
        run(engine.generate(["a", "b"], Sampling())),
        run(engine.score([("a", "b")])),
        run(engine.choose(["a"], ["x", "y"], deadline=60)),
    ):
        assert all("cannot be imported" in str(item) and "rlkd[vllm]" in str(item) for item in results)
    assert run(engine.generate([], Sampling())) == []
    run(engine.close())


def test_a_spec_names_a_server_and_its_model():
    engine = open_engine("http://localhost:8000/v1#org/teacher", concurrency=3)
    assert isinstance(engine, ServerEngine)
    assert (engine.base_url, engine.model, engine.concurrency) == ("http://localhost:8000/v1", "org/teacher", 3)
    assert engine.name == "http://localhost:8000/v1#org/teacher"
    assert open_engine("https://host/v1").model is None


SWITCH = 'chat_template_kwargs={"enable_thinking":false,"date":"1 May"}'


@pytest.mark.parametrize(
    "spec",
    [
        f"transformers:x?{SWITCH}",
        f"vllm:x?{SWITCH}&dtype=float32",
        f"http://a:1/v1?{SWITCH}#m",
        f"https://a/v1,https://b/v1?timeout=5&{SWITCH}#m",
    ],
)
def test_a_spec_may_carry_arguments_of_the_chat_template(spec):
    engine = open_engine(spec)
    assert engine.chat_template_kwargs == {"enable_thinking": False, "date": "1 May"}
    plain = open_engine(spec.replace(SWITCH, "").replace("?&", "?").replace("?#", "#").rstrip("?&"))
    assert plain.chat_template_kwargs is None
    assert engine.name == f'{plain.name}?chat_template_kwargs={{"date": "1 May", "enable_thinking": false}}'


@pytest.mark.parametrize("value", ["false", "{enable", "[1]"])
def test_arguments_of_the_chat_template_that_are_no_mapping_are_refused(value):
    with pytest.raises(ValueError, match="expected a mapping"):
        open_engine(f"transformers:x?chat_template_kwargs={value}")


def test_a_query_of_an_address_is_refused_without_showing_it():
    with pytest.raises(ValueError, match="query or fragment is not allowed") as error:
        open_engine("http://a:1/v1?key=TOPSECRET#m")
    assert "TOPSECRET" not in str(error.value)


@pytest.mark.parametrize("spec", ["", "transformers:", "ollama:x", "some/model", "http:host"])
def test_a_spec_of_no_known_form_is_answered_with_the_forms(spec):
    with pytest.raises(SpecError, match="transformers:MODEL_OR_PATH"):
        open_engine(spec)


def test_a_spec_may_stand_in_the_environment(monkeypatch):
    monkeypatch.setenv("RLKD_JUDGE_SPEC", "http://host:1/v1#judge")
    assert open_engine("env:RLKD_JUDGE_SPEC").name == "http://host:1/v1#judge"
    monkeypatch.delenv("RLKD_JUDGE_SPEC")
    with pytest.raises(SpecError, match=r"env:RLKD_JUDGE_SPEC.*is not set.*rlkd serve"):
        open_engine("env:RLKD_JUDGE_SPEC")


def test_a_misspelt_option_is_answered_with_the_valid_ones():
    with pytest.raises(SpecError, match=r"batch_token'.*Did you mean 'batch_tokens'.*adapter"):
        open_engine("transformers:x", batch_token=3)
    with pytest.raises(SpecError, match=r"device'.*concurrency"):
        open_engine("http://host:1/v1#m", device="cpu")
    with pytest.raises(SpecError, match="no parameter 'model'"):
        open_engine("http://host:1/v1#m", model="other")


@pytest.mark.parametrize("module", [rlkd.engines, rlkd.engines.base, rlkd.engines.logprobs, rlkd.engines.spec])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_results_compare_by_value():
    assert Completion("a", "stop", 1) == Completion("a", "stop", 1)
