-- Gives each service a login role and a schema that it alone can enter, in the database this runs in. Runs as an
-- administrator, any number of times: by db.Bootstrap, by `shop migrate`, by psql, or from the /docker-entrypoint-initdb.d of the
-- postgres image. A role gets the password in the setting shop.<role>_password, where that is set:
--   PGOPTIONS='-c shop.orders_password=… -c shop.inventory_password=… -c shop.logging_password=… -c shop.webhooks_password=…' psql -f bootstrap.sql
DO $$
DECLARE
    service  text;
    password text;
BEGIN
    -- Two at once would both find a role missing.
    PERFORM pg_advisory_xact_lock(hashtext('shop.bootstrap'));
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    FOREACH service IN ARRAY ARRAY ['orders', 'inventory', 'logging', 'webhooks'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = service) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', service);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- made meanwhile, for another database: roles are the server's, the lock is not
            END;
        END IF;
        password := current_setting('shop.' || service || '_password', true);
        IF password <> '' THEN
            EXECUTE format('ALTER ROLE %I PASSWORD %L', service, password);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), service);
        IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = service) THEN
            -- Who gives a schema to a role must be able to become it. CREATEROLE alone is not enough, and from PostgreSQL 16 on
            -- neither is being a member, which who creates a role is.
            IF NOT pg_has_role(service, CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', service);
            END IF;
            EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', service, service);
        END IF;
    END LOOP;
END
$$;
