from dataclasses import replace

import pytest

from simulator.report.verdict import break_even_usd, verdict
from simulator.results.run_result import Band, Economics

from .studies import a_run, a_study, metrics, saturated, unfit, unpriced

COST = "usd_per_million_output_tokens"


def said(*runs):
    return "\n".join(verdict(a_study(*runs)))


def test_the_cheapest_that_meets_the_slo_and_the_next():
    text = said(a_run("dear", usd=0.8), a_run("cheap", usd=0.4), saturated(), unfit())
    assert "Cheapest that meets the SLO: single_device on cheap, at 0.4 USD per million output tokens;" in text
    assert "TTFT p99 400 ms of 1 s, TPOT p99 30 ms of 60 ms." in text
    assert "Next: single_device on dear, which costs 2.00 times as much" in text
    assert "75 % goes to memory: memory bandwidth limits it" in text
    assert "Of 4 rows: 2 meet the SLO, 1 saturated, 1 do not fit." in text
    assert "Not decided" not in text


def test_the_break_even_price_solves_its_equation():
    run, winner_usd = unpriced(known_usd=0.1, added=2e-5), 0.4
    price = break_even_usd(run, winner_usd)
    assert price == pytest.approx((0.4 - 0.1) / 2e-5)
    total_usd = run.economics.known_usd + run.economics.usd_per_unknown_purchase_usd * price
    assert total_usd / run.tokens["output"] * 1e6 == pytest.approx(winner_usd)


def test_an_unknown_price_gives_a_break_even_and_no_point():
    text = said(a_run(usd=0.4), unpriced(known_usd=0.1, added=2e-5))
    assert "Cheapest that meets the SLO, as far as figures are known: single_device on box" in text
    assert (
        "Not decided by known figures: single_device on nr1 meets the SLO too and costs less only if nr1 can"
        " be had for less than 15,000 USD (its own power, unknown too, not counted)."
    ) in text


def test_several_of_a_thing_with_an_unknown_price_are_priced_each():
    money = Economics(1.0, None, 0.1, ("devices.x.price",) * 2, 2e-5)
    text = said(a_run(usd=0.4), a_run("pair", economics=money))
    assert "only if x can be had for less than 15,000 USD each." in text


def test_several_unknown_prices_break_even_together():
    money = Economics(1.0, None, 0.1, ("devices.x.price", "hosts.nr1.price"), 2e-5)
    text = said(a_run(usd=0.4), a_run("pair", economics=money))
    assert "breaks even where x and nr1 cost 15,000 USD each." in text


def test_what_costs_more_by_its_known_part_alone_is_decided():
    assert "Not decided" not in said(a_run(usd=0.4), unpriced(known_usd=0.5))


def test_an_unknown_power_alone_has_no_break_even():
    money = Economics(None, None, 0.1, ("hosts.nr1.power",), 0.0)
    text = said(a_run(usd=0.4), a_run("nr1", economics=money))
    assert "single_device on nr1 has unknown (at least 0.1) USD per million output tokens;" in text
    assert "unknown: hosts.nr1.power." in text


def test_a_row_that_misses_the_slo_is_no_rival_whatever_it_costs():
    assert "nr1" not in said(a_run(usd=0.4), unpriced(metrics=metrics(ttft_s=3.0)))


def test_overlapping_bands_leave_it_open():
    near = a_run("near", usd=0.42, bands={COST: Band(0.37, 0.5)})
    text = said(a_run(usd=0.4, bands={COST: Band(0.38, 0.45)}), near, a_run("far", usd=0.9))
    assert "within the ranges single_device on near at 0.42 (0.37..0.5) USD" in text
    assert "far at" not in text.split("within the ranges")[1]
    apart = replace(near, bands={COST: Band(0.46, 0.5)})
    assert "Not decided" not in said(a_run(usd=0.4, bands={COST: Band(0.38, 0.45)}), apart)


def test_a_limit_that_a_range_may_break_is_said():
    text = said(a_run(bands={"ttft_s.p99": Band(0.3, 1.2)}))
    assert "whether single_device on box meets the SLO; its TTFT p99 is 400 (300..1,200) ms of 1 s." in text


def test_a_cheaper_row_that_a_range_may_let_meet_the_slo_is_said():
    slow = a_run("slow", usd=0.2, metrics=metrics(ttft_s=1.2), bands={"ttft_s.p99": Band(0.9, 1.4)})
    text = said(a_run(usd=0.4), slow)
    assert "single_device on slow misses the SLO at nominal figures, but within the ranges may meet it" in text


def test_nothing_meets_names_the_closest_and_by_how_much():
    text = said(a_run("far", metrics=metrics(ttft_s=3.0)), a_run("near", metrics=metrics(tpot_s=0.072)), saturated())
    assert "No placement meets the SLO. Closest: single_device on near; its TPOT p99 is 72 ms of 60 ms, 20 % over." in text


def test_a_saturated_closest_is_called_so():
    text = said(saturated())
    assert "it is saturated, so its queue would go on growing; its TTFT p99 is at least 30 s of 1 s" in text
    assert "queueing limits it" in text


def test_rejected_requests_break_the_slo():
    assert "5 of 100 requests were rejected or failed" in said(a_run(requests={"finished": 95, "rejected": 5}))


def test_nothing_fits():
    lines = verdict(a_study(unfit(), unfit("other")))
    assert lines[0] == "No placement fits (of 2)."
    assert lines[1] == "tensor_parallel 4 on box: needs 91.2 GiB of 79.6 GiB on gpu-3: weights 70.1."


def test_without_slo_the_cheapest_and_the_fastest():
    quick = a_run("quick", usd=0.9, metrics=metrics(tpot_s=0.01), slo={})
    text = said(a_run(usd=0.4, slo={}), quick)
    assert "Cheapest: single_device on box, at 0.4 USD" in text
    assert "Lowest TPOT p99: single_device on quick, 10 ms." in text
    assert "SLO" not in text


def test_only_unknown_costs_decide_nothing():
    text = said(unpriced())
    assert "Not decided by known figures: no placement that meets the SLO has a cost that is known." in text
    assert "unknown: hosts.nr1.price and hosts.nr1.power." in text


def test_each_workload_is_a_question_of_its_own():
    def at(rate, machine, usd):
        return a_run(machine, usd=usd, axes={"machine": machine, "workload.arrivals.rate": rate})

    lines = verdict(a_study(at(1.0, "a", 0.9), at(1.0, "b", 0.8), at(8.0, "a", 0.1), at(8.0, "b", 0.2)))
    cheapest = [line for line in lines if "Cheapest" in line]
    assert cheapest[0].startswith("rate 1: Cheapest that meets the SLO: single_device on b,")
    assert cheapest[1].startswith("rate 8: Cheapest that meets the SLO: single_device on a,")


def test_an_equal_cost_is_called_as_much():
    assert "costs as much" in said(a_run("a"), a_run("b"))
