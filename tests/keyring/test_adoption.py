"""A key made in the console joins the ring if it is what it claims to be, else it is said why not."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.keyring.support import OTHER_REGION, REGION, RING, World, arn
from tokensvc.errors import IvsNotFoundError, KeyMismatchError
from tokensvc.keyring.record import KeyPhase, key_tags

KEY = ec.generate_private_key(ec.SECP384R1())


def pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encoding: Encoding = Encoding.PEM,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(encoding, form, encryption or NoEncryption())


def public_pem(key: ec.EllipticCurvePrivateKey = KEY) -> str:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
async def test_a_console_made_key_signs_after_the_next_rotation(
    world: World, form: PrivateFormat, encoding: Encoding
) -> None:
    manager = world.manager()
    await manager.prepare(REGION)
    theirs = world.ivs.put(REGION, public_pem(), "made-in-console")
    adopted = await manager.adopt(REGION, pem(form=form, encoding=encoding), theirs.arn)
    assert (adopted.phase, adopted.name) == (KeyPhase.STANDBY, "made-in-console")
    assert adopted.checked_at == world.clock.now
    world.clock.now += world.policy.standby_min_age
    await manager.rotate(REGION, to=adopted.key_id)
    view = await manager.load_view()
    assert view.signing_key(REGION).arn == theirs.arn


async def test_it_is_the_first_key_where_there_is_none(world: World) -> None:
    manager = world.manager()
    theirs = world.ivs.put(REGION, public_pem())
    adopted = await manager.adopt(REGION, pem(), theirs.arn)
    assert (await manager.prepare(REGION)).key_id == adopted.key_id
    assert len(world.ivs.keys) == 1


async def test_it_is_deleted_like_any_other_when_its_tokens_are_gone(world: World) -> None:
    manager = world.manager()
    theirs = world.ivs.put(REGION, public_pem())
    await manager.adopt(REGION, pem(), theirs.arn)
    await manager.tick(REGION)
    await manager.tick(REGION)
    world.clock.now += world.policy.period
    await manager.tick(REGION)
    world.clock.now += world.policy.drain
    await manager.tick(REGION)
    assert theirs.arn in world.ivs.deleted


async def test_adopting_twice_is_adopting_once(world: World) -> None:
    manager = world.manager()
    theirs = world.ivs.put(REGION, public_pem())
    first = await manager.adopt(REGION, pem(), theirs.arn)
    assert await manager.adopt(REGION, pem(), theirs.arn) == first


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (public_pem().encode(), "a public key alone"),
        (pem(encryption=BestAvailableEncryption(b"pw")), "under a password"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "on curve secp256r1; IVS takes P-384"),
        (pem(rsa.generate_private_key(65537, 2048)), "not an elliptic-curve key"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "no private key"),
        (pem()[:-40], "no private key in PEM or DER"),
        (b"", "no private key in PEM or DER"),
    ],
)
async def test_what_is_no_p384_private_key_is_refused_in_words(
    world: World, content: bytes, why: str
) -> None:
    theirs = world.ivs.put(REGION, public_pem())
    with pytest.raises(KeyMismatchError, match=why) as caught:
        await world.manager().adopt(REGION, content, theirs.arn)
    assert "BEGIN" not in caught.value.detail
    assert world.phases() == {}


async def test_halves_that_do_not_belong_together_are_refused(world: World) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    theirs = world.ivs.put(REGION, public_pem(other))
    with pytest.raises(KeyMismatchError, match="holds another public key under"):
        await world.manager().adopt(REGION, pem(), theirs.arn)


async def test_arns_that_cannot_be_are_refused(world: World) -> None:
    manager = world.manager()
    with pytest.raises(KeyMismatchError, match="The ARN cannot be used"):
        await manager.adopt(REGION, pem(), "arn:aws:ivs:eu-central-1:1:stage/x")
    with pytest.raises(KeyMismatchError, match="of us-east-1, and the ring of eu-central-1"):
        await manager.adopt(REGION, pem(), arn("x", OTHER_REGION))
    with pytest.raises(IvsNotFoundError, match="holds no public key under"):
        await manager.adopt(REGION, pem(), arn("x"))


async def test_a_key_of_another_account_is_not_taken(world: World) -> None:
    await world.settled()
    world.ivs.account = "999999999999"
    theirs = world.ivs.put(REGION, public_pem())
    with pytest.raises(KeyMismatchError, match="another AWS account than the keys of this ring"):
        await world.manager().adopt(REGION, pem(), theirs.arn)


async def test_a_key_of_another_ring_is_not_taken(world: World) -> None:
    theirs = world.ivs.put(REGION, public_pem(), tags=key_tags("other", "owner", "k1"))
    with pytest.raises(KeyMismatchError, match="belongs to another key ring"):
        await world.manager().adopt(REGION, pem(), theirs.arn)


async def test_a_key_that_has_retired_is_not_brought_back(world: World) -> None:
    manager = world.manager()
    theirs = world.ivs.put(REGION, public_pem())
    adopted = await manager.adopt(REGION, pem(), theirs.arn)
    await manager.prepare(REGION)
    await manager.tick(REGION)
    world.clock.now += world.policy.period
    await manager.tick(REGION)
    with pytest.raises(KeyMismatchError, match=f"is key {adopted.key_id} of this ring already"):
        await manager.adopt(REGION, pem(), theirs.arn)


async def test_reconcile_shows_every_kind_of_drift_and_repairs_it(world: World) -> None:
    manager = await world.settled()
    lost = world.standby
    owner = world.ring().owner
    world.ivs.drop(lost.arn or "")
    other = world.ivs.put(REGION, public_pem())
    orphan = world.ivs.put(REGION, public_pem(), tags=key_tags(RING, owner, "kold"))
    before = world.ring()
    report = await manager.reconcile(REGION, dry_run=True)
    assert {(found.kind, found.arn) for found in report.findings} == {
        ("gone", lost.arn),
        ("orphan", orphan.arn),
        ("foreign", other.arn),
    }
    assert report.planned == (f"Forget {lost.key_id}", f"Adopt {orphan.arn}")
    assert (world.ring(), report.status) == (before, None)
    repaired = await manager.reconcile(REGION)
    assert repaired.status is not None
    assert repaired.status.steps == report.planned
    again = await manager.reconcile(REGION, dry_run=True)
    assert [found.kind for found in again.findings] == ["foreign"]


async def test_reconcile_names_what_was_left_unfinished(world: World) -> None:
    manager = await world.settled()
    twin = world.ivs.put(
        REGION, public_pem(), tags=key_tags(RING, world.ring().owner, world.active.key_id)
    )
    report = await manager.reconcile(REGION, dry_run=True)
    assert [(found.kind, found.arn) for found in report.findings] == [("stray", twin.arn)]
