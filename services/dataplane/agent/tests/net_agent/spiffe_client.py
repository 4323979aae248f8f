"""What a workload does with the stock client: prints one JSON line per thing it learnt."""
import json
import sys

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import WorkloadApiClient
from spiffe.svid.jwt_svid import JwtSvid

socket, mode, *rest = sys.argv[1:]
client = WorkloadApiClient(f"unix:{socket}")


def public(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def told(context):
    svid = context.default_svid
    domain = svid.spiffe_id.trust_domain
    roots = context.x509_bundle_set.get_bundle_for_trust_domain(domain).x509_authorities
    # The issuer, and while an older root is about, the issuer's key under that one as well.
    leaf, *issuers = svid.cert_chain
    assert issuers, "no issuer"
    for issuer in issuers:
        leaf.verify_directly_issued_by(issuer)
        (root,) = [root for root in roots if root.subject == issuer.issuer]
        issuer.verify_directly_issued_by(root)
    assert public(svid.private_key.public_key()) == public(svid.leaf.public_key()), "not the leaf's key"
    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": f"{svid.leaf.serial_number:x}",
        "roots": len(roots),
        "issuers": len(issuers),
        "extensions": [e.oid.dotted_string for e in svid.leaf.extensions],
    }


def show(what):
    print(json.dumps(what), flush=True)


if mode == "x509":
    show(told(client.fetch_x509_context(timeout=20)))
    show({"bundles": len(client.fetch_x509_bundles(timeout=20).bundles)})
elif mode == "jwt":
    (mine,) = client.fetch_jwt_svids({"bank", "shop"}, timeout=20)
    bundle = client.fetch_jwt_bundles(timeout=20).get_bundle_for_trust_domain(mine.spiffe_id.trust_domain)
    # Three readings of the same token: the agent's, the client's, and a plain JWT library's.
    agreed = client.validate_jwt_svid(mine.token, "bank")
    own = JwtSvid.parse_and_validate(mine.token, bundle, {"shop"})
    key = bundle.get_jwt_authority(jwt.get_unverified_header(mine.token)["kid"])
    claims = jwt.decode(mine.token, key=key, algorithms=["ES256"], audience="bank")
    refused = None
    try:
        client.validate_jwt_svid(mine.token, "thief")
    except Exception as error:
        refused = str(error)
    show({
        "subjects": [str(mine.spiffe_id), str(agreed.spiffe_id), str(own.spiffe_id), claims["sub"]],
        "audience": sorted(claims["aud"]),
        "life": claims["exp"] - claims["iat"],
        "refused": refused,
    })
elif mode == "watch":
    client.stream_x509_contexts(
        lambda context: show(told(context)),
        lambda error: show({"error": str(error)}),
        retry_connect=False,
    )
    sys.stdin.read()
