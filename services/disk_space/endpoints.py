from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from services.disk_space.folder import Folder, Space
from services.runtime.http import needs


def router(folder: Folder) -> APIRouter:
    made = APIRouter(tags=["disk"])

    @made.get("/disk", dependencies=[needs("read")])
    async def disk() -> Space:
        """The free and the total bytes of the folder's file system."""
        return await run_in_threadpool(folder.space)

    return made
