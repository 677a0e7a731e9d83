import shutil

import ibis
import pytest
from trait_worlds import INSTANTS, busy_world, everything


@pytest.fixture(scope="module")
def spark():
    """A local Spark session as an engine."""
    sql = pytest.importorskip("pyspark.sql", reason="PySpark is absent: the extra cdp-ml[spark]")
    if shutil.which("java") is None:
        pytest.skip("Java is absent, which Spark runs on")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": "2g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "ERROR",
        "spark.sql.shuffle.partitions": "1",
        # Little data: planning and generating code would take longer than computing.
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    }
    builder = sql.SparkSession.builder.master("local[1]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield ibis.pyspark.connect(session)
    session.stop()


def test_spark_computes_the_same_traits(spark):
    world, instants = busy_world(), INSTANTS[1:]
    expected, found = everything(world, instants), everything(world, instants, spark)
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        different = [n for n, value in row.items() if not _alike(found[key][n], value)]
        assert {n: (found[key][n], row[n]) for n in different} == {}


def _alike(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-9, abs=1e-9)
    return one == other
