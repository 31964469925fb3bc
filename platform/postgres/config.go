package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"
)

// hostTimeout bounds connecting to one of several hosts, unless the URL says connect_timeout.
const hostTimeout = 2 * time.Second

// Config parses a postgres:// URL with one host or several, for connections that use schema ("" leaves the server's search
// path). Of several hosts the first one that accepts writes is used, unless target_session_attrs says otherwise. If neither
// the URL nor PGSSLMODE says whether to use TLS, TLS is required, except to this machine.
func Config(databaseURL, schema string) (pq.Config, error) {
	u, err := ParseURL(databaseURL)
	if err != nil {
		return pq.Config{}, err
	}
	if strings.Contains(u.Host, ",") {
		spreadHosts(u)
	}
	config, err := pq.NewConfig(u.String())
	if err != nil {
		return pq.Config{}, fmt.Errorf("reading the database URL: %w", err)
	}
	if config.SSLMode == "" {
		// Not "prefer": lib/pq 1.12 forgets to close the connection on which the server declined TLS.
		config.SSLMode = pq.SSLModeDisable
		if !isThisMachine(config.Host) || slices.ContainsFunc(config.Multi, func(m pq.ConfigMultihost) bool { return !isThisMachine(m.Host) }) {
			config.SSLMode = pq.SSLModeRequire
		}
	}
	if len(config.Multi) > 0 {
		config.TargetSessionAttrs = cmp.Or(config.TargetSessionAttrs, pq.TargetSessionAttrsReadWrite)
		config.ConnectTimeout = cmp.Or(config.ConnectTimeout, hostTimeout)
	}
	if config.Runtime == nil {
		config.Runtime = map[string]string{}
	}
	if schema != "" {
		config.Runtime["search_path"] = schema
	}
	return config, nil
}

func isThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// spreadHosts rewrites several hosts, a:5432,b:5433, for lib/pq, whose own form has one port for all.
func spreadHosts(u *url.URL) {
	var hosts, ports []string
	for address := range strings.SplitSeq(u.Host, ",") {
		host, port, err := net.SplitHostPort(address)
		if err != nil { // it has no port
			host, port = address, "5432"
		}
		hosts, ports = append(hosts, host), append(ports, port)
	}
	query := u.Query()
	query.Set("host", strings.Join(hosts, ","))
	query.Set("port", strings.Join(ports, ","))
	u.Host, u.RawQuery = "", query.Encode()
}

// ParseURL parses a postgres:// URL. The error does not contain the URL, because that has a password.
func ParseURL(databaseURL string) (*url.URL, error) {
	u, err := url.Parse(databaseURL)
	if parse, ok := errors.AsType[*url.Error](err); ok {
		err = parse.Err
	}
	if err == nil && u.Scheme != "postgres" && u.Scheme != "postgresql" {
		err = errors.New("it must begin with postgres://")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	return u, nil
}
