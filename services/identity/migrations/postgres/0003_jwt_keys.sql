-- Keys that sign JWT-SVIDs live as roots and issuers do; of a key, cert_der holds the public half as
-- a JWK in JSON.
ALTER TABLE authorities DROP CONSTRAINT authorities_kind_check;
ALTER TABLE authorities ADD CONSTRAINT authorities_kind_check CHECK (kind IN ('root', 'issuer', 'jwt'));
