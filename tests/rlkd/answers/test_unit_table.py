from rlkd.answers.unit_table import CURRENCY_SIGNS, UNITS


def test_units_that_can_be_converted_share_a_kind():
    assert UNITS["km"]["length^1"] == 1000 * UNITS["m"]["length^1"]
    assert UNITS["gallon"]["length^3"] == 8 * UNITS["pint"]["length^3"]
    assert UNITS["acre"]["length^2"] == 4840 * UNITS["yd"]["length^1"] ** 2
    assert UNITS["mph"]["length^1/time^1"] == UNITS["mi"]["length^1"] / UNITS["h"]["time^1"]


def test_a_pound_is_a_mass_and_money():
    assert set(UNITS["pound"]) == {"mass^1", "GBP^1"}


def test_signs_and_codes_stand_before_amounts_and_names_do_not():
    assert {"$", "us$", "usd", "€", "rs."} <= set(CURRENCY_SIGNS)
    assert not {"dollar", "yen", "kg"} & set(CURRENCY_SIGNS)
