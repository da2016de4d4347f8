"""Sealing under AWS KMS, against moto's server over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.keyring.support import REGION, RING, World
from tokensvc.errors import KmsError, SealError
from tokensvc.ivs.clients import ClientSettings, StaticCredentials
from tokensvc.ivs.kms import BotoKmsClient
from tokensvc.keyring.kms import KmsSealer
from tokensvc.keyring.reseal import reseal
from tokensvc.keyring.sealing import SealContext

CONTEXT = SealContext(RING, REGION, "k1")
CREDENTIALS = StaticCredentials("test-access-key-id", "test-secret")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def new_kms_key(endpoint: str) -> str:
    client = boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS.access_key_id,
        aws_secret_access_key=CREDENTIALS.secret_access_key,
    )
    arn = client.create_key()["KeyMetadata"]["Arn"]
    client.close()
    return str(arn)


def kms(endpoint: str, key_id: str) -> BotoKmsClient:
    settings = ClientSettings(endpoint_url=endpoint, total_max_attempts=1)
    return BotoKmsClient(key_id, REGION, settings=settings, credentials=CREDENTIALS)


@pytest.fixture
async def client(endpoint: str) -> AsyncIterator[BotoKmsClient]:
    client = kms(endpoint, new_kms_key(endpoint))
    yield client
    await client.aclose()


async def test_what_kms_sealed_opens_again(client: BotoKmsClient) -> None:
    sealer = KmsSealer(client)
    sealed = await sealer.seal(b"private half", CONTEXT)
    assert b"private" not in sealed
    assert await sealer.unseal(sealed, CONTEXT) == b"private half"


@pytest.mark.parametrize(
    "other",
    [
        SealContext("other", REGION, "k1"),
        SealContext(RING, "us-east-1", "k1"),
        SealContext(RING, REGION, "k2"),
    ],
)
async def test_it_does_not_open_in_another_row(client: BotoKmsClient, other: SealContext) -> None:
    sealed = await KmsSealer(client).seal(b"half", CONTEXT)
    with pytest.raises(SealError, match="another row"):
        await KmsSealer(client).unseal(sealed, other)


async def test_what_is_sealed_otherwise_is_said(client: BotoKmsClient, world: World) -> None:
    sealed = await world.sealer.seal(b"half", CONTEXT)
    with pytest.raises(SealError, match="not sealed by AWS KMS"):
        await KmsSealer(client).unseal(sealed, CONTEXT)
    blob = await KmsSealer(client).seal(b"half", CONTEXT)
    with pytest.raises(SealError, match="unknown form"):
        await world.sealer.unseal(blob, CONTEXT)


async def test_a_key_that_kms_does_not_know_is_an_outage_and_not_damage(endpoint: str) -> None:
    client = kms(endpoint, f"arn:aws:kms:{REGION}:123456789012:key/00000000-0000-0000-0000-000000")
    with pytest.raises(KmsError, match="NotFoundException"):
        await KmsSealer(client).seal(b"half", CONTEXT)
    await client.aclose()


async def test_a_kms_that_does_not_answer_is_said(unused_tcp_port: int) -> None:
    client = kms(f"http://127.0.0.1:{unused_tcp_port}", "alias/x")
    with pytest.raises(KmsError, match="does not answer") as caught:
        await KmsSealer(client).seal(b"secret half", CONTEXT)
    assert "secret half" not in repr(caught.value.context)
    await client.aclose()
    with pytest.raises(KmsError):
        await KmsSealer(client).seal(b"half", CONTEXT)


async def test_a_ring_moves_from_a_file_to_kms_and_signs(
    client: BotoKmsClient, world: World
) -> None:
    await world.settled()
    sealer = KmsSealer(client)
    report = await reseal(world.store, RING, old=world.sealer, new=sealer)
    assert len(report.resealed) == 2
    manager = world.manager(sealer=sealer)
    await manager.rotate(REGION)
    assert (await manager.load_view()).signing_key(REGION).key_id == world.active.key_id
