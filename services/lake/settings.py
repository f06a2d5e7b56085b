from pydantic import Field

from services.runtime.settings import LakeSettings


class SparkConnectSettings(LakeSettings):
    spark_connect_url: str = Field("sc://127.0.0.1:15002", description="the Spark Connect server that reads the lake")
