from rlkd.doctor.findings import Finding, rendered


def test_findings_are_shown_by_topic_with_their_ways_out_and_a_count():
    found = [
        Finding("disk", "ok", "much"),
        Finding("disk", "warning", "little", "Delete.\nOr buy."),
        Finding("hub", "problem", "gone", "Wait."),
    ]
    assert rendered(found).splitlines() == [
        "disk",
        "  ok       much",
        "  warning  little",
        "           Delete.",
        "           Or buy.",
        "hub",
        "  problem  gone",
        "           Wait.",
        "",
        "1 warning, 1 problem",
    ]


def test_long_texts_are_wrapped():
    first, second, *_ = rendered([Finding("disk", "ok", "word " * 30)]).splitlines()[1:]
    assert first.startswith("  ok       word")
    assert second.startswith("           word")
