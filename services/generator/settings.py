from pydantic import Field

from services.runtime.settings import ListenSettings, Port


class GeneratorSettings(ListenSettings):
    generator_port: Port = Field(30800, description="port of the generator")
    generator_seed: int = Field(0, ge=0, lt=2**53, description="seed of the rows; 0: from the clock")
    ingest_url: str = Field("http://127.0.0.1:8081", description="the ingest API that rows are sent to")
