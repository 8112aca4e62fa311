"""What a policy file means, and the errors of one that is wrong."""

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.errors import ExitStatus, PolicyError
from mcpguard.limiter.plan import label_parts
from mcpguard.policy.explain import sentences
from mcpguard.policy.lint import warnings
from mcpguard.policy.model import Call, Rate, Rule
from mcpguard.policy.parse import STARTER, parse, parse_cost, parse_rule, text_of
from tests.build import steps
from tests.policy.rules import written
from tests.policy.test_schema import ONE_KEY

ALICE = Call("alice", "Claude Code::interactive::default", "crm", "search")


def test_a_rule_is_parsed_with_all_its_keys() -> None:
    selectors = "user='*' tool='search' server='crm' role=['a', 'b'] scope='c'"
    text = written(f"{selectors} per=['user', 'user'] limit=['20/1m', '100/90m'] mode='observe' name='search'", head="# us\n\n")
    (rule,) = parse(text).rules
    assert rule == Rule(
        selectors={"user": ("*",), "tool": ("search",), "server": ("crm",), "role": ("a", "b"), "scope": ("c",)},
        per=frozenset({"user"}),
        per_text="user",
        rates=(Rate(20, 60_000_000, "1m"), Rate(100, 5_400_000_000, "90m")),
        observe=True,
        name="search",
        line=3,
    )


def test_the_digest_is_of_the_text() -> None:
    text = '[[rule]]\nlimit = "1/1s"\n'
    assert parse(text).digest == parse(text).digest != parse(text + " ").digest


def test_the_starter_policy_limits_each_agent_of_each_user_by_tier() -> None:
    starter = parse(STARTER)
    for tier, limit in (("interactive", 100), ("subagent", 60), ("background", 30), ("api", 30)):
        plan = starter.plan(ALICE._replace(agent=f"X::{tier}::y"))
        assert [reported.limit for reported in plan.reported] == [limit]
        assert label_parts(plan.counters[0].label).values == {"user": "alice", "agent": f"X::{tier}::y"}
    assert not starter.plan(ALICE._replace(agent="X::custom::y")).limits


MORE = ['per = ["user"]', 'wait = "5s"', 'warn = "80%"', "concurrent = 2", 'name = "x"', 'mode = "observe"', 'count = "cost"']


@pytest.mark.parametrize("more", MORE)
def test_a_starter_rule_is_known_until_somebody_edits_it(more: str) -> None:
    edited = STARTER.replace("100/1m", "50/1h") + more + "\n" + written("tool='x' limit='100/1m'")
    assert [rule.is_starter for rule in parse(STARTER).rules] == [True] * 4
    assert [rule.is_starter for rule in parse(edited).rules] == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1/1s", Rate(1, 1_000_000, "1s")),
        ("5/1m", Rate(5, 60_000_000, "1m")),
        ("007/01h", Rate(7, 3_600_000_000, "1h")),
        ("1/1d", Rate(1, 86_400_000_000, "1d")),
        ("1/2w", Rate(1, 1_209_600_000_000, "2w")),
        ("1000000000/3650d", Rate(10**9, 315_360_000_000_000, "3650d")),
        ("200/session", Rate(200, 2_592_000_000_000, "session")),
    ],
)
def test_a_limit_is_a_number_of_calls_per_window(text: str, rate: Rate) -> None:
    assert parse_rule({"limit": text}, where="test").rates == (rate,)
    assert parse_rule({"limit": [text]}, where="test").rates == (rate,)


HEAD = '[[rule]]\ntool = "x"\nlimit = "1/1s"\n\n'
DENY = "[[rule]]\nlimit = 'deny'\n"
HUGE = "0x" + "f" * 5000
SHARES = 'from "1%" to "100%": warn = "80%"'


def limited(limit: str) -> str:
    return f"[[rule]]\nlimit = '{limit}'"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "p.toml: line 1: the file is empty", "remove it"),
        ("# only a comment", "p.toml: line 1: the file is empty", "write rules"),
        ("mode = 'observe'\nx y", "p.toml: line 2: not TOML: Expected '='", "in quotes"),
        ("\ufeff[[rule]]\nlimit = 'deny'", "p.toml: line 1: begins with a byte order mark", "without one"),
        ("[[rule]]\nlimit = [", "p.toml: line 2: not TOML: Invalid value", "in quotes"),
        *(
            (f"{header}\nlimit = 'deny'", "p.toml: line 1: not TOML: ", "begin each rule with a line that has only [[rule]]")
            for header in ("[[rule]", "[rule]]", "[[rule", "[[rule]]]", "rule]]", "[ [rule] ]", "[[rule]] limit = 'deny'")
        ),
        ("[rule]\nlimit = 'deny'\n[rule]\nlimit = 'deny'", "p.toml: line 3: not TOML: ", "[[rule]]"),
        ("mode = 'observe'\n[[cost]\ncost = 2", "p.toml: line 2: not TOML: ", "[[cost]]"),
        *((f"[[rule]]\n{key}", "p.toml: line 2: not TOML: ", "in quotes") for key in ("limit = 5/1m", "tool = search")),
        *((f"[[rule]]\nlimit = [{one}\n{HEAD}", "line 3: not TOML: ", "at its end") for one in ("'5/1m'", "'5/1m',")),
        ("[[rule]]\nlimit = ['5/1m' '6/1h']", "p.toml: line 2: not TOML: ", "commas"),
        ("[[rule]]\nlimit = 'x'\nlimit = 'x'", "p.toml: line 3: not TOML: Cannot overwrite a value", "write each key once"),
        ("rules = []", "p.toml: line 1: unknown key 'rules'", "'[[rule]]'"),
        ("[[RULE]]\nlimit = 'deny'", "p.toml: line 1: unknown key 'RULE'", "'[[rule]]'"),
        ("moed = 'enforce'", "p.toml: line 1: unknown key 'moed'", "'mode'"),
        ("[store]\nurl = 'x'", "p.toml: line 1: unknown key 'store'", "write store into config.toml"),
        ("zzzz = 1", "p.toml: line 1: unknown key 'zzzz'", "use one of: mode wait [[rule]] [[cost]]"),
        ("mode = 'on'", "p.toml: line 1: mode: 'on' is none of enforce observe", "use one of: enforce observe"),
        ("rule = 7", "p.toml: line 1: 'rule' is not a list of tables", "[[rule]]"),
        ("[rule]\nlimit = '1/1s'", "p.toml: line 1: 'rule' is not a list of tables", "[[rule]]"),
        ("rule = [{tool = 'x'}]", "p.toml: line 1: rule 1: no limit", "100/1h"),
        (HEAD + "[[rule]]\ntool = 'y'", "p.toml: line 5: rule 2: no limit", "100/1h"),
        (HEAD + "[[rule]]\ntol = 'y'\nlimit = 'deny'", "p.toml: line 6: rule 2: unknown key 'tol'", "'tool'"),
        (HEAD + "[[rule]]\nqqq = 'y'\nlimit = 'deny'", "line 6: rule 2: unknown key 'qqq'", "use one of: user agent tool"),
        (HEAD + HEAD, "p.toml: line 5: rule 2: the same selectors and per as rule 1: tool=x", "several limits"),
        (DENY + "name = 7", "p.toml: line 3: rule 1: name: 7 is not text", "name ="),
        (DENY + "mode = 'off'", "p.toml: line 3: rule 1: mode: 'off' is none of enforce observe", "observe"),
        *((f"{DENY}user = {one}", f"p.toml: line 3: rule 1: user: {one} is not text", 'user = "…"') for one in ("7", "['a']")),
        (DENY + "role = ['a', 7]", "p.toml: line 3: rule 1: role: 7 is not text", 'role = "…"'),
        (DENY + "role = []", "p.toml: line 3: rule 1: role: an empty list", "leave role out"),
        (DENY + "tool = ''", "p.toml: line 3: rule 1: tool: empty text", "leave tool out"),
        (DENY + "agent = 'x'", "p.toml: line 3: rule 1: agent: 'x' does not have three", '"*::*::x"'),
        (DENY + "agent = 'Cursor'", "does not have three parts", '"Cursor::*::*"'),
        (DENY + "agent = 'claude-code'", "does not have three parts", '"Claude Code::*::*"'),
        (DENY + "per = 'user'", "p.toml: line 3: rule 1: per: 'user' is not a list", 'per = ["user"]'),
        (DENY + "per = 'none'", "per: 'none' is not a list", "write per = []"),
        (DENY + "per = ['usr']", "rule 1: per: unknown axis 'usr'", "'user'"),
        *((f"{DENY}per = [{one}]", f"unknown axis {one}", "use one of: user agent tool server") for one in ("'role'", "[]")),
        ("a = 1\nb = " + "9" * 5000, "p.toml: line 2: not TOML", "in quotes"),
        ("a = " + "[" * 5000, "p.toml: line 1: not TOML: nested too deeply", "can be lists"),
        ("[[rule]]\nlimit = 7", "p.toml: line 2: rule 1: limit: 7 is not text", '"100/1h"'),
        ("[[rule]]\nlimit = []", "p.toml: line 2: rule 1: limit: an empty list", '"unlimited"'),
        *(
            (f"[[rule]]\nlimit = ['5/1m', '{one}']", f"limit: '{one}' stands alone", f'limit = "{one}", without')
            for one in ("deny", "unlimited")
        ),
        ("[[rule]]\nlimit = ['5/1m', '9/60s']", "rule 1: limit: two limits for one window: 5/1m and 9/60s", "keep one of them"),
        ("[[rule]]\nlimit = '0/1m'", "rule 1: limit: '0/1m' admits nothing", '"deny"'),
        ("[[rule]]\nlimit = '1000000001/1m'", "'1000000001/1m' is over 1000000000 calls", '"unlimited"'),
        *((limited(one), f"'{one}' has a window out of bounds", "from 1s to 3650d") for one in ("5/0m", "5/3651d")),
        *(
            (limited(one), f"'{one}' is not a limit", f'did you mean "{meant}"?')
            for one, meant in (
                *(("5/m", "5/1m"), ("5/1M", "5/1m"), ("5 per hour", "5/1h"), ("5 every 10 Minutes", "5/10m")),
                *(("5 per session", "5/session"), ("5/1Sessions", "5/session"), ("DENY", "deny"), ("unlimitd", "unlimited")),
                *(("5 per msec", "5000/1s"), ("5/100ms", "50/1s")),
            )
        ),
        *((limited(one), f"'{one}' is not a limit", "a number of calls per window") for one in ("5/2session", "5/1y", "٥/1m")),
        *((limited(one), "is not a limit", "the shortest window is 1s") for one in ("5/100ms", "5/0ms")),
        *((limited(f"5/1m{more}"), "is not a limit", "write each limit by itself: 5/1m 6/1h") for more in (" 6/1h", ", 6/1h")),
        ("[[rule]]\nlimit = ['5/session', '6/session']", "two limits for one window: 5/session and 6/session", "keep one"),
        (
            "[[rule]]\nuser = '*'\nlimit = '9/session'\n[[rule]]\nuser = '*'\nlimit = '8/30d'\nper = ['session', 'user']",
            "the same selectors and per as rule 1",
            "keep one of them",
        ),
        ("[[rule]]\nlimit = '5/1m\\n'", "is not a limit", "calls per window"),
        (f"[[rule]]\nlimit = '{'1' * 40}/1m'", "is not a limit", ""),
        ("concurrent = 2", "p.toml: line 1: unknown key 'concurrent'", "write concurrent below a line [[rule]]"),
        ("wait = 5", "p.toml: line 1: wait: 5 is not a time to wait", 'did you mean "5s"?'),
        ("wait = true", "p.toml: line 1: wait: True is not a time to wait", 'wait = "5s"'),
        ("wait = '2h'", "p.toml: line 1: wait: '2h' is too long", 'from "0s" to "3600s"'),
        (HEAD + "wait = '5'", "p.toml: line 5: rule 1: wait: '5' is not a time to wait", 'wait = "5s"'),
        (HEAD + "wait = '٥s'", "wait: '٥s' is not a time to wait", "(s m h)"),
        (HEAD + f"wait = '{'9' * 5000}s'", f"wait: '{'9' * 59} is not a time to wait", "(s m h)"),
        (HEAD + "warn = 80", "p.toml: line 5: rule 1: warn: 80 is not a share of a limit", 'did you mean "80%"?'),
        (HEAD + "warn = '80 %'", "warn: '80 %' is not a share of a limit", 'did you mean "80%"?'),
        *(
            (f"{HEAD}warn = {one}", f"warn: {one} is not a share of a limit", SHARES)
            for one in ("0.8", "'0%'", "'101%'", "'٨٠%'")
        ),
        (HEAD + "warn = true", "warn: True is not a share of a limit", SHARES),
        ("[[rule]]\nconcurrent = 2\nwarn = '80%'", "line 3: rule 1: warn: no limit with a window", 'limit = "100/1h"'),
        ("[[rule]]\nlimit = 'unlimited'\nwarn = '80%'", "rule 1: warn: no limit with a window", 'limit = "100/1h"'),
        (HEAD + "concurrent = '2'", "p.toml: line 5: rule 1: concurrent: '2' is not a number of", "quotes: concurrent = 2"),
        (HEAD + "concurrent = 0", "rule 1: concurrent: 0 is not a number of calls in flight", 'limit = "deny"'),
        (HEAD + "concurrent = 10001", "rule 1: concurrent: 10001 is not a number of calls in flight", "from 1 to 10000"),
        (HEAD + "concurrent = true", "rule 1: concurrent: True is not a number of calls in flight", "from 1 to 10000"),
        (HEAD + "concurrent = 'deny'", "rule 1: concurrent: 'deny' is not a number of calls in flight", '"unlimited"'),
        (f"{HEAD}concurrent = {HUGE}", "rule 1: concurrent: this number is not a number of", "from 1 to"),
        (HEAD + "count = 'error'", "line 5: rule 1: count: 'error' is none of calls cost errors", "did you mean 'errors'?"),
        (HEAD + "count = 'concurrent'", "rule 1: count: 'concurrent' is none of calls cost errors", "write concurrent = 2"),
        (HEAD + "count = ['cost']", "rule 1: count: ['cost'] is none of calls cost errors", "use one of: calls cost errors"),
        ("[[rule]]\nconcurrent = 2\ncount = 'cost'", "rule 1: count: no limit that counts cost", 'limit = "100/1h"'),
        *(
            (f"{DENY}{key} = {one}", f"rule 1: {key}: this rule denies every call", f"leave {key} out")
            for key, one in (("concurrent", "2"), ("count", "'cost'"), ("wait", "'5s'"), ("warn", "'80%'"))
        ),
        (HEAD + "cost = 20", "p.toml: line 5: rule 1: unknown key 'cost'", "write a table [[cost]]"),
        (HEAD + "[[rule.cost]]\ncost = 20", "p.toml: line 5: rule 1: unknown key 'cost'", "write a table [[cost]]"),
        (HEAD + "arguments = 'x'", "rule 1: unknown key 'arguments'", 'per = ["user", "arguments"]'),
        (HEAD + "per = ['args']", "rule 1: per: unknown axis 'args'", "did you mean 'arguments'?"),
        *(
            (written(f"{one} limit='1/1s'", f"{other} limit='2/1s'"), "the same selectors and per as rule 1", "")
            for one, other in (
                ("role=['a', 'b']", "role=['b', 'a']"),
                ("role='a'", "role=['a', 'a']"),
                ("tool='x'", "tool='x' per=['tool']"),
                ("tool='x' name='one'", "tool='x' name='two' mode='observe'"),
                ("tool='x' concurrent=2", "tool='x' concurrent=3"),
            )
        ),
        ("cost = 20", "p.toml: line 1: 'cost' is not a list of tables", "begin each cost with a line [[cost]]"),
        ("[cost]\ntool = 'a'\ncost = 20", "p.toml: line 1: 'cost' is not a list of tables", "[[cost]]"),
        ("[[costs]]\ncost = 20", "p.toml: line 1: unknown key 'costs'", "'[[cost]]'"),
        (HEAD + "[[cost]]\ntool = 'a'", "p.toml: line 5: cost 1: no cost", "cost = 20"),
        (HEAD + "[[cost]]\ncost = 0", "p.toml: line 6: cost 1: cost: 0 is not a number of units", 'count = "cost"'),
        (HEAD + "[[cost]]\ncost = '20'", "cost 1: cost: '20' is not a number of units", "without quotes: cost = 20"),
        (HEAD + "[[cost]]\ncost = 1000000001", "cost 1: cost: 1000000001 is not a number of units", "to 1000000000"),
        (HEAD + "[[cost]]\ncost = 2\nuser = 'a'", "p.toml: line 7: cost 1: unknown key 'user'", "use only tool and server"),
        (HEAD + "[[cost]]\ncost = 2\nlimit = '5/1m'", "cost 1: unknown key 'limit'", "use one of: tool server cost"),
        (HEAD + "[[cost]]\ncost = 2\ntool = ['a']", "cost 1: tool: ['a'] is not text", 'tool = "…"'),
        (
            HEAD + "[[cost]]\ntool = 'a'\ncost = 2\n" + HEAD.replace('"x"', '"z"') + "[[cost]]\ntool = 'a'\ncost = 3",
            "p.toml: line 12: cost 2: the same selectors as cost 1: tool=a",
            "keep one of them",
        ),
        (f"mode = {HUGE}", "mode: this number is none of enforce observe", "observe"),
        (f"[[rule]]\nlimit = {HUGE}", "limit: this number is not text", '"100/1h"'),
        (f"{DENY}per = {HUGE}", "per: this number is not a list", 'per = ["user"]'),
        (f"{DENY}per = [{HUGE}]", "per: unknown axis this number", "use one of: user"),
        (f"[[rule]]\nlimit = '5/{'1' * 5000}m'", "is not a limit", ""),
    ],
)
def test_an_error_names_file_rule_and_field_and_hints_at_the_right_form(text: str, message: str, hint: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse(text, source="p.toml")
    assert raised.value.message.startswith("p.toml: ")
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert "\n" not in raised.value.message + raised.value.hint
    assert raised.value.exit_status == ExitStatus.CONFIGURATION


def test_a_very_long_key_is_cut() -> None:
    with pytest.raises(PolicyError) as raised:
        parse(f"{'z' * 99} = 1", source="p.toml")
    assert raised.value.message == f"p.toml: line 1: unknown key '{'z' * 59}"


@pytest.mark.parametrize("count", ["'error'", "1"])
def test_a_rule_that_counts_nothing_known_has_one_error(count: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse(f"[[rule]]\nconcurrent = 2\ncount = {count}")
    assert [one.message.partition(": count: ")[2] for one in raised.value.problems] == [f"{count} is none of calls cost errors"]


def test_every_error_is_found_at_once_with_its_line_its_column_and_its_rule() -> None:
    text = """\
moed = "observe"

[[rule]]
tol   = "search"
limit = ["5/100ms", "9/1h", "8/60m", 7]
[[rule]]
agent = "subagent"
per   = ["user", "usr"]
role  = ["a", ""]
mode  = "off"
name  = 7
"""
    with pytest.raises(PolicyError) as raised:
        parse(text, source="p.toml")
    found = [
        (one.line, one.column, one.width, one.rule, one.text[one.column - 1 :][: one.width]) for one in raised.value.problems
    ]
    assert found == [
        (1, 1, 4, 0, "moed"),
        (4, 1, 3, 1, "tol"),
        (5, 10, 9, 1, '"5/100ms"'),
        (5, 29, 7, 1, '"8/60m"'),
        (5, 38, 1, 1, "7"),
        (6, 1, 8, 2, "[[rule]]"),
        (7, 9, 10, 2, '"subagent"'),
        (8, 18, 5, 2, '"usr"'),
        (9, 15, 2, 2, '""'),
        (10, 9, 5, 2, '"off"'),
        (11, 9, 1, 2, "7"),
    ]
    assert raised.value.problems[5].message == "rule 2: no limit"
    assert raised.value.message == "p.toml: line 1: unknown key 'moed' (and 10 more errors)"
    assert raised.value.hint == raised.value.problems[0].hint == "did you mean 'mode'?"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("mode = 'observe'\nx y", (2, 3, 1, "x y")),
        ("[[rule]]\ntool = 'a\nlimit = 'deny'", (2, 10, 1, "tool = 'a")),
        ("[[rule]]\nlimit = 'x'\nlimit = 'x'", (3, 1, 1, "limit = 'x'")),
        ("[[rule]]\r\nlimit = [\r\n", (3, 1, 1, "")),
        ("rule = [\n {},\n {limit = 'x', tool = 'y'}\n]", (2, 2, 2, " {},")),
        ('[[rule]]\nlimit = """\n5"""', (2, 9, 3, 'limit = """')),
        ("# nothing", (1, 1, 1, "# nothing")),
        ("[[rule]]\nlimit = '1/1s'\n[[cost]]\ntool = 'a'  # x\ncost =  '2'  # y", (5, 9, 3, "cost =  '2'  # y")),
        ("cost = [\n {cost = 2},\n {cost = 0x0}\n]", (3, 10, 3, " {cost = 0x0}")),
        ("[[cost]]\ncost = 2\n\n[[rule]]\nconcurrent = [\n 2]", (5, 14, 1, "concurrent = [")),
    ],
)
def test_an_error_has_the_text_of_its_line(text: str, at: tuple[int, int, int, str]) -> None:
    with pytest.raises(PolicyError) as raised:
        parse(text)
    first = raised.value.problems[0]
    assert (first.line, first.column, first.width, first.text) == at


def test_bytes_that_are_not_utf8_are_named_by_their_line() -> None:
    assert text_of("# é\n".encode(), source="p.toml") == "# é\n"
    with pytest.raises(PolicyError, match=r"^p\.toml: line 2: not UTF-8$"):
        text_of("#\n# é\n".encode("latin-1"), source="p.toml")


def test_parsing_takes_time_linear_in_the_number_of_rules() -> None:
    def of(rules: int) -> int:
        text = written(*(f"user='u{at}' limit='1/1s'" for at in range(rules)))
        assert [rule.line for rule in parse(text).rules] == list(range(1, 3 * rules, 3))
        return steps(lambda: parse(text).plan(ALICE))

    assert of(400) <= 4.5 * of(100)


def test_an_error_in_a_single_rule_or_cost_begins_with_the_given_place() -> None:
    with pytest.raises(PolicyError, match=r"^policy set: limit: '5' is not a limit$"):
        parse_rule({"limit": "5"}, where="policy set")
    with pytest.raises(PolicyError, match=r"^policy set: cost: 0 is not a number of units$"):
        parse_cost({"tool": "report", "cost": 0}, where="policy set")
    assert parse_rule({"limit": "5/1m"}, where="policy set").line == 0
    assert parse_cost({"tool": "report", "cost": 20}, where="policy set").units == 20


def test_rules_have_no_line_if_tables_and_headers_do_not_correspond() -> None:
    text = "note = '''\n[[rule]]\n'''\n"
    with pytest.raises(PolicyError, match=r"^p.toml: line 1: unknown key 'note'$"):
        parse(text, source="p.toml")
    with pytest.raises(PolicyError, match=r"^p.toml: line 1: rule 1: no limit$"):
        parse("[[rule]]\nname = '''\n[[rule]]\n'''", source="p.toml")


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        parse(text)
    except PolicyError as error:
        assert error.message  # noqa: PT017 - what else it is, is not told


def test_any_tables_are_a_policy_or_have_errors_at_their_places() -> None:
    for text in map(tomli_w.dumps, ONE_KEY):
        try:
            found = parse(text)
            found.plan(ALICE)
            assert len(sentences(found)) == len(found.rules)
            warnings(found)
        except PolicyError as error:
            lines = text.split("\n")
            for problem in error.problems:
                assert problem.text == lines[problem.line - 1]
                assert 1 <= problem.column <= len(problem.text) + 1


def test_an_agent_of_one_star_is_any_agent() -> None:
    (rule,) = parse("[[rule]]\nagent = '*'\nlimit = '5/1m'").rules
    assert rule.text == "agent=*::*::*"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"user": "*", "role": ["a", "b"], "limit": ["5/1m", "9/1h"]}, "--user * --role a --role b 5/1m 9/1h"),
        (
            {"tool": "t", "per": [], "limit": "9/1h", "count": "cost", "concurrent": 2},
            "--tool t --per none --concurrent 2 --count cost 9/1h",
        ),
        ({"tool": "t", "concurrent": "unlimited"}, "--tool t --concurrent unlimited"),
        ({"tool": "t", "limit": "deny"}, "--tool t deny"),
    ],
)
def test_a_rule_is_written_as_the_arguments_that_set_it(table: dict[str, object], words: str) -> None:
    assert " ".join(parse_rule(table, where="rule").setting) == words
