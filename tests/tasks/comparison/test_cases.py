import pandas as pd

from tasks.comparison.cases import figure_ids


def test_figure_positions_count_covid_19_test_images_by_file_name() -> None:
    rows = [("infection", "Test", "COVID-19", name) for name in ("covid_9", "covid_10", "covid_2")]
    rows += [("infection", "Test", "Normal", "a"), ("infection", "Val", "COVID-19", "b")]
    rows += [("lung", "Test", "COVID-19", "c")]
    table = pd.DataFrame(rows, columns=["half", "split", "class", "id"])
    assert figure_ids(table, "infection", "covid") == ["covid_10", "covid_2", "covid_9"]
    assert figure_ids(table, "infection", "normal") == ["a"]
