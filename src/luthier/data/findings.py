"""Everything `check` can say about the rows themselves, worst first where it matters: what a verdict could not survive is an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.core.types import Example, Finding, Reject
from luthier.data.conflicts import answer_key, find_conflicts
from luthier.data.duplicates import Duplicates, find_duplicates
from luthier.data.leakage import Leak, find_given_answers, find_leaks
from luthier.data.privacy import find_private
from luthier.data.profile import profile_task
from luthier.data.report_rows import MAX_DETAIL, finding
from luthier.data.split import MIN_TEST_ROWS, default_test_rows
from luthier.data.suspicious import suspicious_rows

REJECT_WARN_SHARE, REJECT_ERROR_SHARE = 0.01, 0.5
ONE_SIDED_SHARE = 0.95
FIRM_TEST_ROWS = 100  # with fewer, a verdict is "leaning" at most


def check_examples(
    examples: Sequence[Example],
    *,
    rejects: Sequence[Reject] = (),
    test: Sequence[Example] | None = None,
    dev: Sequence[Example] | None = None,
    duplicates: Duplicates | None = None,
) -> tuple[Finding, ...]:
    """Run every check that needs no model and turn it into findings, each with count, places and one remedy.

    `test` and `dev` are official rows in files of their own, `rejects` those of all files; rows marked
    test among `examples` count as well. `duplicates` saves the search
    if it was made for `examples`. Errors only for what makes a verdict worthless: too few rows to test on, one answer to everything, no row
    left.
    """
    if not examples:
        return (finding("few-rows", "error", "there are no rows", "give a file with at least a few hundred examples", ()),)
    duplicates = duplicates or find_duplicates(examples)
    official = [*(test or ()), *(e for e in examples if e.given_split == "test")]
    train = [e for e in examples if e.given_split != "test"]
    profile = profile_task(train or examples)
    found = [
        *_rejected(rejects, len(examples) + len(test or ()) + len(dev or ())),
        *_few_rows(train, official, duplicates),
        *_one_answer(train or examples),
        *_duplicates(examples, duplicates),
        *_conflicts(examples, is_free_text=profile.kind == "text"),
        *_leaks([*train, *(dev or ())], official),
        *_given_answers(train),
        *suspicious_rows(examples, profile=profile, duplicates=duplicates),
        *find_private([*examples, *(test or ()), *(dev or ())]),
    ]
    return tuple(found)


def _rejected(rejects: Sequence[Reject], num_kept: int) -> list[Finding]:
    if not rejects:
        return []
    share = len(rejects) / (len(rejects) + num_kept)
    counts = Counter(reject.code for reject in rejects)
    return [
        Finding(
            code="rejected-rows",
            severity="error" if share > REJECT_ERROR_SHARE else "warning" if share > REJECT_WARN_SHARE else "info",
            message=f"{len(rejects):,} of {len(rejects) + num_kept:,} rows could not be used ({share:.1%})",
            fix=rejects[0].fix,
            count=len(rejects),
            where=tuple((reject.path, reject.line) for reject in rejects[:MAX_DETAIL]),
            detail=tuple(f"{code}: {count}" for code, count in counts.most_common(MAX_DETAIL)),
        )
    ]


def _few_rows(train: Sequence[Example], official: Sequence[Example], duplicates: Duplicates) -> list[Finding]:
    groups = len({duplicates.clusters.get(e.id, e.id) for e in train})
    num_test = len(official) or min(default_test_rows(len(train)), groups)
    if num_test >= FIRM_TEST_ROWS:
        return []
    source = "official test rows" if official else f"test rows can be made of {len(train)} rows in {groups} groups without near-duplicates"
    limit = "no verdict is given" if num_test < MIN_TEST_ROWS else 'a verdict is "leaning" at most'
    return [
        finding(
            "few-rows",
            "error" if num_test < MIN_TEST_ROWS else "warning",
            f"{num_test} {source}; below {MIN_TEST_ROWS if num_test < MIN_TEST_ROWS else FIRM_TEST_ROWS} {limit}",
            "add rows: 500 different ones allow 100 test rows, and a difference of 5 points needs about 600"
            + ("" if official or num_test == len(train) else "; luthier run --folds 5 tests on every row"),
            (),
            count=num_test,
        )
    ]


def _one_answer(rows: Sequence[Example]) -> list[Finding]:
    answers = Counter(answer_key(e.response) for e in rows if e.kind == "instruct")
    total = sum(answers.values())
    if total < 2:
        return []
    answer, count = answers.most_common(1)[0]
    if count < ONE_SIDED_SHARE * total:
        return []
    code = "constant-output" if len(answers) == 1 else "one-class"
    share = "all" if len(answers) == 1 else f"{count / total:.1%} of the"
    return [
        finding(
            code,
            "error" if len(answers) == 1 else "warning",
            f"{share} {total} rows have the same answer; answering it always is right as often, whatever the prompt",
            "add rows with the other answers, or measure on a test set with as many of each",
            [e for e in rows if e.kind == "instruct" and answer_key(e.response) == answer],
            detail=(answer[:200],),
        )
    ]


def _duplicates(examples: Sequence[Example], duplicates: Duplicates) -> list[Finding]:
    by_id = {e.id: e for e in examples}
    out: list[Finding] = []
    repeats = [by_id[e_id] for group in duplicates.exact for e_id in group[1:]]
    if repeats:
        out.append(
            finding(
                "exact-duplicates",
                "warning" if len(repeats) > 0.01 * len(examples) else "info",
                f"{len(repeats)} rows repeat the prompt and the answer of an earlier row (case, spacing and final punctuation aside)",
                "remove the repeats, unless the weight they give is meant; they stay on one side of the split",
                repeats,
                detail=_places(duplicates.exact, by_id),
            )
        )
    exact_sets = [set(group) for group in duplicates.exact]
    groups = [group for group in duplicates.near if not any(set(group) <= same for same in exact_sets if group[0] in same)]
    if groups:
        rows = [by_id[e_id] for group in groups for e_id in group]
        out.append(
            finding(
                "near-duplicates",
                "info",
                f"{len(rows)} rows are {len(groups)} groups of nearly the same prompt (the same words, or Jaccard similarity of character "
                f"5-grams at least {duplicates.threshold:g})",
                "nothing to do: a random split would leak some of them from training into test, this one keeps a group on one side",
                rows,
                detail=_places(groups, by_id),
            )
        )
    return out


def _conflicts(examples: Sequence[Example], *, is_free_text: bool) -> list[Finding]:
    conflicts = find_conflicts(examples)
    if not conflicts.groups:
        return []
    by_id = {e.id: e for e in examples}
    rows = [by_id[e_id] for group in conflicts.groups for e_id in group]
    message = f"{len(conflicts.groups)} prompts have different answers, in {conflicts.num_rows} rows"
    if conflicts.ceiling is not None and conflicts.ceiling.value is not None:
        message += f"; no model can match more than {conflicts.ceiling.value:.2%} of these rows exactly"
    elif is_free_text:
        message += "; for free text these may be several right answers"
    return [
        finding(
            "conflicting-answers",
            "info" if is_free_text else "warning",
            message,
            "keep the right answer of each, or put what the answer depends on into the prompt",
            rows,
            count=len(conflicts.groups),
            detail=_places(conflicts.groups, by_id),
        )
    ]


def _leaks(train: Sequence[Example], official: Sequence[Example]) -> list[Finding]:
    if not train or not official:
        return []
    leaks = find_leaks(train, official)
    kinds = (
        ("leak-exact", leaks.exact, "stand in the training rows with the same prompt", "the training rows are left out of training"),
        (
            "leak-near",
            (*leaks.spelling, *leaks.near, *leaks.contained),
            "stand in the training rows with nearly the same prompt (case, spacing, punctuation, a few letters, or inside a longer one)",
            "the training rows are left out of training",
        ),
        (
            "answer-in-prompt",
            leaks.answers,
            "have their answer, of eight words or more, in the prompt of a training row",
            "these training rows are kept; remove them if the answer is not meant to be seen",
        ),
    )
    return [_leak_finding(code, found, len(official), what, done) for code, found, what, done in kinds if found]


def _leak_finding(code: str, leaks: Sequence[Leak], num_test: int, what: str, done: str) -> Finding:
    tests = {(leak.test.path, leak.test.line, leak.test.id): leak.test for leak in leaks}
    return finding(
        code,
        "warning",
        f"{len(tests)} of {num_test} test rows ({len(tests) / num_test:.1%}) {what}; {done}",
        "make the test set of rows that are in no training file, for example of later dates or other customers",
        list(tests.values()),
        detail=tuple(
            f"test {leak.test.path}:{leak.test.line} = train {leak.train.path}:{leak.train.line} ({leak.kind}, {leak.similarity:.2f})"
            for leak in leaks[:MAX_DETAIL]
        ),
    )


def _given_answers(train: Sequence[Example]) -> list[Finding]:
    leaks = find_given_answers(train)
    if not leaks:
        return []
    rows = {leak.test.id: leak.test for leak in leaks}
    return [
        finding(
            "answer-in-prompt",
            "warning",
            f"{len(rows)} rows have their answer, of eight words or more, in the prompt of another row; the split can put one into test "
            "and the other into training",
            "name a field whose equal values stay together, --set data.group=FIELD, or remove the rows",
            list(rows.values()),
            detail=tuple(
                f"{leak.test.path}:{leak.test.line} is answered in {leak.train.path}:{leak.train.line}" for leak in leaks[:MAX_DETAIL]
            ),
        )
    ]


def _places(groups: Sequence[Sequence[str]], by_id: dict[str, Example]) -> tuple[str, ...]:
    return tuple(", ".join(f"{by_id[e_id].path}:{by_id[e_id].line}" for e_id in group[:10]) for group in groups[:MAX_DETAIL])
