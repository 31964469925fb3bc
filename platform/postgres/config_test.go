package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"shop.example/platform/postgres"
)

func TestConfig_ABadURLIsAnErrorThatKeepsThePassword(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "shopdb", "mysql://u:s3cret@db/shopdb", "postgres://u:s3cret@db:port/shopdb", "postgres://u:s3cret@db/%zz", "postgres://u:s3cret@db/x?sslmode=maybe"} {
		_, err := postgres.Config(bad, "orders")
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Config(%q) = %v, want an error without the password", bad, err)
		}
	}
}

func TestConfig_RequiresTLSExceptOnThisMachineOrIfToldOtherwise(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]pq.SSLMode{
		"postgres://u@db/shopdb":                            pq.SSLModeRequire,
		"postgres://u@10.0.0.1/shopdb":                      pq.SSLModeRequire,
		"postgres://u@localhost/shopdb":                     pq.SSLModeDisable,
		"postgres://u@127.0.0.1:5433/shopdb":                pq.SSLModeDisable,
		"postgres://u@/shopdb?host=/tmp":                    pq.SSLModeDisable,
		"postgres://u@db/shopdb?sslmode=disable":            pq.SSLModeDisable,
		"postgres://u@localhost/shopdb?sslmode=verify-full": pq.SSLModeVerifyFull,
	} {
		config, err := postgres.Config(url, "orders")
		if err != nil || config.SSLMode != want || config.Runtime["search_path"] != "orders" {
			t.Errorf("Config(%q) = sslmode %q, search_path %q, %v; want %q", url, config.SSLMode, config.Runtime["search_path"], err, want)
		}
	}
}

func TestConfig_SeveralHostsHaveEachTheirPort(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://u:p@a:5433,b:5434/shopdb?target_session_attrs=read-write": "a:5433 b:5434",
		"postgres://u@a,b/shopdb":       "a:5432 b:5432",
		"postgres://u@/shopdb?host=a,b": "a:5432 b:5432",
		"postgres://u@a:6432/shopdb":    "a:6432",
	} {
		config, err := postgres.Config(url, "orders")
		if err != nil {
			t.Errorf("Config(%q): %v", url, err)
			continue
		}
		got := fmt.Sprintf("%s:%d", config.Host, config.Port)
		for _, m := range config.Multi {
			got += fmt.Sprintf(" %s:%d", m.Host, m.Port)
		}
		several := strings.Contains(want, " ")
		if primary := config.TargetSessionAttrs == pq.TargetSessionAttrsReadWrite; primary != several || (config.ConnectTimeout == 2*time.Second) != several {
			t.Errorf("Config(%q): target_session_attrs %q, connect_timeout %s", url, config.TargetSessionAttrs, config.ConnectTimeout)
		}
		if got != want || config.Database != "shopdb" || config.SSLMode != pq.SSLModeRequire {
			t.Errorf("Config(%q) = %s, database %s, sslmode %s; want %s", url, got, config.Database, config.SSLMode, want)
		}
	}
}
