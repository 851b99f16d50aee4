-- Written by `make schema`, from the revisions in migrations/. Not to be edited.

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE IF NOT EXISTS steer_meta (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
);

INSERT INTO steer_meta (name, value) VALUES ('secret', '{secret}') ON CONFLICT (name) DO NOTHING;

INSERT INTO steer_meta (name, value) VALUES ('min_writer', '1') ON CONFLICT (name) DO NOTHING;

CREATE TABLE owners (
    id VARCHAR(36) NOT NULL,
    instance TEXT,
    version TEXT,
    started_us BIGINT NOT NULL,
    lease_until_us BIGINT NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE requests (
    id VARCHAR(36) NOT NULL,
    request_id TEXT NOT NULL,
    trace_id TEXT,
    parent_id TEXT,
    instance TEXT,
    config_rev TEXT,
    caller TEXT,
    labels TEXT,
    route TEXT,
    dialect TEXT,
    operation TEXT,
    method TEXT,
    path TEXT,
    stream SMALLINT,
    model_requested TEXT,
    model_answered TEXT,
    upstream TEXT,
    rule TEXT,
    started_us BIGINT NOT NULL,
    ended_us BIGINT,
    duration_us BIGINT,
    wait_us BIGINT,
    first_token_us BIGINT,
    status BIGINT,
    outcome TEXT,
    error_class TEXT,
    attempts BIGINT,
    ambiguous SMALLINT,
    sdk_retry BIGINT,
    bytes_in BIGINT,
    bytes_out BIGINT,
    tokens_in BIGINT,
    tokens_cached BIGINT,
    tokens_out BIGINT,
    tokens_reasoning BIGINT,
    cost_nusd BIGINT,
    wasted_nusd BIGINT,
    avoided_nusd BIGINT,
    cost_source TEXT,
    idem_key TEXT,
    idem_scope TEXT,
    idem_fp TEXT,
    idem_role TEXT,
    idem_state TEXT,
    idem_live SMALLINT,
    idem_epoch BIGINT,
    owner_id VARCHAR(36),
    served_from VARCHAR(36),
    sent_us BIGINT,
    expires_us BIGINT,
    keyring_id TEXT,
    resp_headers TEXT,
    resp_bytes BIGINT,
    resp_chunks BIGINT,
    resp_sha256 TEXT,
    PRIMARY KEY (id)
);

CREATE UNIQUE INDEX requests_live_key ON requests (idem_scope) WHERE idem_live = 1;

CREATE INDEX requests_started ON requests (started_us);

CREATE INDEX requests_request_id ON requests (request_id);

CREATE INDEX requests_trace_id ON requests (trace_id) WHERE trace_id IS NOT NULL;

CREATE INDEX requests_idem_key ON requests (idem_key) WHERE idem_key IS NOT NULL;

CREATE INDEX requests_served_from ON requests (served_from) WHERE served_from IS NOT NULL;

CREATE INDEX requests_expires ON requests (expires_us) WHERE idem_live = 1 AND expires_us IS NOT NULL;

CREATE TABLE attempts (
    request VARCHAR(36) NOT NULL,
    n BIGINT NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT,
    credential TEXT,
    upstream_request_id TEXT,
    started_us BIGINT NOT NULL,
    duration_us BIGINT,
    connect_us BIGINT,
    headers_us BIGINT,
    first_token_us BIGINT,
    wait_us BIGINT,
    wait_source TEXT,
    status BIGINT,
    outcome TEXT,
    failure_class TEXT,
    executed TEXT,
    reused_conn SMALLINT,
    bytes_sent BIGINT,
    bytes_received BIGINT,
    tokens_in BIGINT,
    tokens_cached BIGINT,
    tokens_out BIGINT,
    tokens_reasoning BIGINT,
    cost_nusd BIGINT,
    cost_source TEXT,
    wasted SMALLINT,
    PRIMARY KEY (request, n)
);

CREATE INDEX attempts_upstream_started ON attempts (upstream, started_us);

CREATE INDEX attempts_started ON attempts (started_us);

CREATE TABLE response_chunks (
    request VARCHAR(36) NOT NULL,
    seq BIGINT NOT NULL,
    byte_offset BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    codec TEXT NOT NULL,
    key_id TEXT,
    raw_bytes BIGINT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (request, seq)
);

CREATE TABLE breaker_events (
    id VARCHAR(36) NOT NULL,
    at_us BIGINT NOT NULL,
    instance TEXT,
    kind TEXT,
    upstream TEXT,
    model TEXT,
    credential TEXT,
    from_state TEXT,
    to_state TEXT,
    reason TEXT,
    generation BIGINT,
    until_us BIGINT,
    window_calls BIGINT,
    window_failures BIGINT,
    request VARCHAR(36),
    actor TEXT,
    PRIMARY KEY (id)
);

CREATE INDEX breaker_events_at ON breaker_events (at_us);

CREATE VIEW v_idempotency AS
SELECT
    r.id,
    r.idem_key,
    r.idem_scope,
    CASE
        WHEN r.idem_state = 'sent' AND COALESCE(o.lease_until_us, 0) <= CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) THEN 'uncertain'
        WHEN r.idem_state = 'claimed' AND COALESCE(o.lease_until_us, 0) <= CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) THEN 'abandoned'
        ELSE r.idem_state
    END AS state,
    r.idem_state AS written_state,
    CASE WHEN r.expires_us <= CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) THEN 1 ELSE 0 END AS expired,
    r.idem_epoch AS epoch,
    r.request_id,
    r.caller,
    r.route,
    r.upstream,
    COALESCE(r.model_answered, r.model_requested) AS model,
    r.status,
    r.outcome,
    r.owner_id,
    o.instance AS owner_instance,
    strftime('%Y-%m-%dT%H:%M:%fZ', (r.started_us / 1000) / 1000.0, 'unixepoch') AS started_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', (r.sent_us / 1000) / 1000.0, 'unixepoch') AS sent_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', (r.expires_us / 1000) / 1000.0, 'unixepoch') AS expires_at,
    r.started_us,
    (CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) - r.started_us) / 1000000.0 AS age_s,
    r.resp_bytes AS stored_bytes,
    r.cost_nusd / 1000000000.0 AS cost_usd,
    (SELECT COUNT(*) FROM requests AS d WHERE d.served_from = r.id) AS duplicates,
    (SELECT CASE WHEN COUNT(*) = 0 THEN 0 ELSE SUM(d.avoided_nusd) END FROM requests AS d WHERE d.served_from = r.id)
        / 1000000000.0 AS avoided_usd
FROM requests AS r
LEFT JOIN owners AS o ON o.id = r.owner_id
WHERE r.idem_live = 1;

CREATE VIEW v_spend AS
SELECT
    id,
    request_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch') AS started_at,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch'), 1, 10) AS day,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch'), 1, 13) || ':00Z' AS hour,
    started_us,
    instance,
    caller,
    labels,
    route,
    dialect,
    operation,
    upstream,
    COALESCE(model_answered, model_requested) AS model,
    stream,
    status,
    outcome,
    idem_key,
    idem_role,
    served_from,
    tokens_in,
    tokens_cached,
    tokens_out,
    tokens_reasoning,
    cost_source,
    cost_nusd / 1000000000.0 AS cost_usd,
    wasted_nusd / 1000000000.0 AS wasted_usd,
    avoided_nusd / 1000000000.0 AS avoided_usd,
    (COALESCE(cost_nusd, 0) + COALESCE(wasted_nusd, 0)) / 1000000000.0 AS spent_usd
FROM requests;

CREATE VIEW v_wasted AS
SELECT
    a.request,
    a.n,
    strftime('%Y-%m-%dT%H:%M:%fZ', (a.started_us / 1000) / 1000.0, 'unixepoch') AS started_at,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (a.started_us / 1000) / 1000.0, 'unixepoch'), 1, 10) AS day,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (a.started_us / 1000) / 1000.0, 'unixepoch'), 1, 13) || ':00Z' AS hour,
    a.started_us,
    a.upstream,
    a.model,
    a.status,
    a.outcome,
    a.failure_class,
    a.executed,
    a.duration_us / 1000000.0 AS duration_s,
    a.tokens_in,
    a.tokens_out,
    a.cost_nusd / 1000000000.0 AS cost_usd,
    a.cost_source,
    r.request_id,
    r.caller,
    r.labels,
    r.route,
    r.idem_key,
    r.outcome AS call_outcome
FROM attempts AS a
LEFT JOIN requests AS r ON r.id = a.request
WHERE a.wasted = 1;

CREATE VIEW v_upstream_health AS
SELECT
    upstream,
    model,
    hour,
    day,
    COUNT(*) AS attempts,
    SUM(CASE WHEN outcome = 'ok' THEN 1 ELSE 0 END) AS ok,
    SUM(CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END) AS throttled,
    SUM(CASE WHEN outcome IN ('upstream_5xx', 'timeout', 'network', 'broken') THEN 1 ELSE 0 END)
        AS failed,
    MIN(CASE WHEN good = 1 AND place * 100 >= 50 * places THEN duration_us END) / 1000.0 AS p50_ms,
    MIN(CASE WHEN good = 1 AND place * 100 >= 95 * places THEN duration_us END) / 1000.0 AS p95_ms
FROM (
    SELECT
        *,
        ROW_NUMBER() OVER (PARTITION BY upstream, model, hour, good ORDER BY duration_us) AS place,
        COUNT(*) OVER (PARTITION BY upstream, model, hour, good) AS places
    FROM (
        SELECT
            upstream,
            model,
            substr(strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch'), 1, 10) AS day,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch'), 1, 13) || ':00Z' AS hour,
            outcome,
            duration_us,
            CASE WHEN outcome = 'ok' AND duration_us IS NOT NULL THEN 1 ELSE 0 END AS good
        FROM attempts
    ) AS dated
) AS ranked
GROUP BY upstream, model, hour, day;

INSERT INTO alembic_version (version_num) VALUES ('0001') RETURNING version_num;

ALTER TABLE requests ADD COLUMN attempt_model TEXT;

ALTER TABLE requests ADD COLUMN attempt_credential TEXT;

ALTER TABLE requests ADD COLUMN attempt_upstream_request_id TEXT;

ALTER TABLE requests ADD COLUMN attempt_started_us BIGINT;

ALTER TABLE requests ADD COLUMN attempt_duration_us BIGINT;

ALTER TABLE requests ADD COLUMN attempt_connect_us BIGINT;

ALTER TABLE requests ADD COLUMN attempt_headers_us BIGINT;

ALTER TABLE requests ADD COLUMN attempt_first_token_us BIGINT;

ALTER TABLE requests ADD COLUMN attempt_wait_source TEXT;

ALTER TABLE requests ADD COLUMN attempt_reused_conn SMALLINT;

ALTER TABLE requests ADD COLUMN attempt_bytes_sent BIGINT;

ALTER TABLE requests ADD COLUMN attempt_bytes_received BIGINT;

DROP VIEW v_upstream_health;

CREATE VIEW v_attempts AS SELECT request, n, upstream, model, credential, upstream_request_id, started_us, duration_us, connect_us, headers_us, first_token_us, wait_us, wait_source, status, outcome, failure_class, executed, reused_conn, bytes_sent, bytes_received, tokens_in, tokens_cached, tokens_out, tokens_reasoning, cost_nusd, cost_source, wasted, started_us AS called_us FROM attempts UNION ALL SELECT id AS request, CAST(1 AS BIGINT) AS n, upstream AS upstream, attempt_model AS model, attempt_credential AS credential, attempt_upstream_request_id AS upstream_request_id, attempt_started_us AS started_us, attempt_duration_us AS duration_us, attempt_connect_us AS connect_us, attempt_headers_us AS headers_us, attempt_first_token_us AS first_token_us, wait_us AS wait_us, attempt_wait_source AS wait_source, status AS status, CAST('ok' AS TEXT) AS outcome, CAST(NULL AS TEXT) AS failure_class, CAST('yes' AS TEXT) AS executed, attempt_reused_conn AS reused_conn, attempt_bytes_sent AS bytes_sent, attempt_bytes_received AS bytes_received, tokens_in AS tokens_in, tokens_cached AS tokens_cached, tokens_out AS tokens_out, tokens_reasoning AS tokens_reasoning, cost_nusd AS cost_nusd, cost_source AS cost_source, CAST(0 AS SMALLINT) AS wasted, started_us AS called_us FROM requests WHERE attempt_started_us IS NOT NULL;

CREATE VIEW v_upstream_health AS
SELECT
    upstream,
    model,
    strftime('%Y-%m-%dT%H:00Z', hours * 3600, 'unixepoch') AS hour,
    substr(strftime('%Y-%m-%dT%H:00Z', hours * 3600, 'unixepoch'), 1, 10) AS day,
    attempts,
    ok,
    throttled,
    failed,
    p50_us / 1000.0 AS p50_ms,
    p95_us / 1000.0 AS p95_ms
FROM (
    SELECT
        upstream,
        model,
        hours,
        COUNT(*) AS attempts,
        SUM(CASE WHEN outcome = 'ok' THEN 1 ELSE 0 END) AS ok,
        SUM(CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END) AS throttled,
        SUM(CASE WHEN outcome IN ('upstream_5xx', 'timeout', 'network', 'broken') THEN 1 ELSE 0 END)
            AS failed,
        MIN(CASE WHEN good = 1 AND place * 100 >= 50 * places THEN duration_us END) AS p50_us,
        MIN(CASE WHEN good = 1 AND place * 100 >= 95 * places THEN duration_us END) AS p95_us
    FROM (
        SELECT
            *,
            ROW_NUMBER() OVER (PARTITION BY upstream, model, hours, good ORDER BY duration_us)
                AS place,
            COUNT(*) OVER (PARTITION BY upstream, model, hours, good) AS places
        FROM (
            SELECT
                upstream,
                model,
                started_us / 3600000000 AS hours,
                outcome,
                duration_us,
                CASE WHEN outcome = 'ok' AND duration_us IS NOT NULL THEN 1 ELSE 0 END AS good
            FROM v_attempts
        ) AS timed
    ) AS ranked
    GROUP BY upstream, model, hours
) AS hourly;

DROP VIEW v_spend;

CREATE VIEW v_spend AS
SELECT
    id,
    request_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch') AS started_at,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch'), 1, 10) AS day,
    substr(strftime('%Y-%m-%dT%H:%M:%fZ', (started_us / 1000) / 1000.0, 'unixepoch'), 1, 13) || ':00Z' AS hour,
    started_us,
    instance,
    caller,
    labels,
    route,
    dialect,
    operation,
    upstream,
    COALESCE(model_answered, model_requested) AS model,
    stream,
    status,
    outcome,
    idem_key,
    idem_role,
    served_from,
    tokens_in,
    tokens_cached,
    tokens_out,
    tokens_reasoning,
    cost_source,
    cost_nusd / 1000000000.0 AS cost_usd,
    COALESCE(wasted_nusd, (SELECT SUM(a.cost_nusd) FROM attempts AS a WHERE a.request = requests.id AND a.wasted = 1)) / 1000000000.0 AS wasted_usd,
    avoided_nusd / 1000000000.0 AS avoided_usd,
    (COALESCE(cost_nusd, 0) + COALESCE(COALESCE(wasted_nusd, (SELECT SUM(a.cost_nusd) FROM attempts AS a WHERE a.request = requests.id AND a.wasted = 1)), 0)) / 1000000000.0 AS spent_usd
FROM requests;

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';
