package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lib/pq"
	amqp "github.com/rabbitmq/amqp091-go"

	"shop.example/db"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/mtls"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// section finds the headings of docs/production.md, and the commands under them that are run here.
var section = regexp.MustCompile("(?ms)^### ([^\n]+)$|^```sh run rotation\n(.*?)^```$")

// rotation is a shop in production on servers of its own, with TLS everywhere, whose secrets are in a file of `shop
// secrets`.
type rotation struct {
	*deployment
	own     *servers
	dir     string // with .env and certs
	amqps   string // host:port of the broker's TLS
	steps   map[string][]string
	base    map[*replica][]string // the environment without secrets
	path    string                // where the documents' programs are found
	traffic *traffic
	// exchanged says that gateways get the secret of order ids and the previous one as each other.
	exchanged bool
}

// Each secret is replaced by the commands of docs/production.md, while orders are placed.
func TestRotation_EverySecretIsReplacedUnderLoadAndNoOrderIsLost(t *testing.T) {
	t.Parallel()
	r := newRotation(t)
	r.up(t)
	r.traffic = r.deployment.traffic(t, r.unlimitedStock(t), answerLimit, r.gateways()...)
	r.traffic.flows(t, 50)

	t.Run("token of an operator", r.operatorToken)
	t.Run("secret of order ids", r.idSecret)
	t.Run("passwords in the database", r.databasePasswords)
	t.Run("passwords on the broker", r.brokerPasswords)
	t.Run("certificates", r.certificates)
	for heading := range r.steps {
		t.Errorf("docs/production.md: the commands of %q were not run", heading)
	}

	refused, longest := r.traffic.figures()
	orders := r.traffic.end(t)
	t.Logf("%d orders; refused meanwhile: %v; longest time without an accepted order: %s", orders, refused, longest)
	r.usedUpNoAttempt(t)
	r.comesToRest(t, orders)
	r.traffic.isDecided(t, &r.shop)
}

func newRotation(t *testing.T) *rotation {
	t.Helper()
	own := stoppedServers(t, filepath.Join(t.TempDir(), "servers"))
	r := &rotation{own: own, dir: t.TempDir(), amqps: freeAddrOf(t, "127.0.0.1"), base: map[*replica][]string{}, steps: rotationSteps(t)}
	r.path = filepath.Dir(own.program) + ":" + os.Getenv("PATH")
	r.run(t, "shop secrets --operator ada")
	r.run(t, "shop certs --dir certs gateway order inventory logging webhooks db rabbitmq")

	// The broker reads its TLS from a file that is not the stack's own.
	advanced := filepath.Join(own.dir, "rabbitmq", "advanced.config")
	if err := os.MkdirAll(filepath.Dir(advanced), 0o700); err != nil {
		t.Fatal(err)
	}
	files := r.files("rabbitmq")
	_, port, _ := strings.Cut(r.amqps, ":")
	config := fmt.Sprintf(`[{rabbit, [{ssl_listeners, [{"127.0.0.1", %s}]}, {ssl_options, [{cacertfile, %q}, {certfile, %q}, {keyfile, %q}, {verify, verify_none}]}]}].`,
		port, files.CAFile, files.CertFile, files.KeyFile)
	if err := os.WriteFile(advanced, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	own.start(t)
	r.path = own.brokerTools(t, 0) + ":" + r.path
	r.databaseTakesCertificate(t)
	r.run(t, `psql "$ADMIN_DATABASE_URL" -qc "ALTER SYSTEM SET ssl_cert_file = 'cert.pem'" -c "ALTER SYSTEM SET ssl_key_file = 'key.pem'" -c "ALTER SYSTEM SET ssl = on" -c "SELECT pg_reload_conf()"`)
	r.makeUsers(t)

	r.deployment = newDeployment(t, deploymentOptions{replicas: map[string]int{"gateway": 2}, host: "127.0.0.1"})
	r.broker, r.amqp = &brokertest.Broker{URL: own.amqp}, nil
	r.database = strings.Replace(own.database, "/postgres?", "/"+db.Name+"?", 1)
	for _, replicas := range r.replicas {
		for _, replica := range replicas {
			r.base[replica] = replica.env
		}
	}
	r.configure(t)
	return r
}

// rotationSteps are the commands of docs/production.md by their heading.
func rotationSteps(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/production.md")
	if err != nil {
		t.Fatal(err)
	}
	steps, heading := map[string][]string{}, ""
	for _, m := range section.FindAllStringSubmatch(string(text), -1) {
		if m[1] != "" {
			heading = m[1]
		} else {
			steps[heading] = append(steps[heading], m[2])
		}
	}
	return steps
}

// step returns the next commands under the heading.
func (r *rotation) step(t *testing.T, heading string) string {
	t.Helper()
	if len(r.steps[heading]) == 0 {
		t.Fatalf("docs/production.md has no commands for this under %q", heading)
	}
	commands := r.steps[heading][0]
	if r.steps[heading] = r.steps[heading][1:]; len(r.steps[heading]) == 0 {
		delete(r.steps, heading)
	}
	return commands
}

// run runs commands of the documents.
func (r *rotation) run(t *testing.T, commands string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", commands)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "PATH="+r.path, "ADMIN_DATABASE_URL="+r.own.database)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s%v\n%s", commands, err, out)
	}
}

func (r *rotation) files(name string) mtls.Config {
	return mtls.CertPaths(filepath.Join(r.dir, "certs"), name)
}

// secrets returns what is in the file now.
func (r *rotation) secrets(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, ".env"))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[name] = value
		}
	}
	return values
}

// amqpPassword and databasePassword are the names of a service's passwords, and role is its role.
func amqpPassword(service string) string { return strings.ToUpper(service) + "_AMQP_PASSWORD" }

func databasePassword(service string) string { return strings.ToUpper(role(service)) + "_PASSWORD" }

func role(service string) string {
	if service == "order" {
		return "orders"
	}
	return service
}

// makeUsers makes the users of database and broker with the passwords of the file.
func (r *rotation) makeUsers(t *testing.T) {
	t.Helper()
	values := r.secrets(t)
	passwords, logins := map[string]string{}, map[string]provision.Login{}
	for _, name := range services {
		logins[name] = provision.Login{User: name, Password: values[amqpPassword(name)]}
		if name != "gateway" {
			passwords[role(name)] = values[databasePassword(name)]
		}
	}
	if err := errors.Join(db.Bootstrap(t.Context(), r.own.database, passwords), provision.Users(t.Context(), topology.Broker(), r.own.management, "/", logins)); err != nil {
		t.Fatal(err)
	}
}

// brokerURL and databaseURL are those of a service with a password; caFile has the CAs that are accepted.
func (r *rotation) brokerURL(service, password, caFile string) string {
	return fmt.Sprintf("amqps://%s:%s@%s/?cacertfile=%s", service, password, r.amqps, url.QueryEscape(caFile))
}

func (r *rotation) databaseURL(t *testing.T, service, password, caFile string) string {
	t.Helper()
	u, err := url.Parse(r.own.database)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = url.UserPassword(role(service), password), "/"+db.Name
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {caFile}}.Encode()
	return u.String()
}

// configure gives each replica the secrets of now, for its next start.
func (r *rotation) configure(t *testing.T) {
	t.Helper()
	values := r.secrets(t)
	if r.exchanged {
		values["SHOP_ID_SECRET"], values["SHOP_ID_SECRET_PREVIOUS"] = values["SHOP_ID_SECRET_PREVIOUS"], values["SHOP_ID_SECRET"]
	}
	for _, name := range services {
		files := r.files(name)
		env := []string{
			"AMQP_URL=" + r.brokerURL(name, values[amqpPassword(name)], files.CAFile),
			"GRPC_TLS_CERT_FILE=" + files.CertFile, "GRPC_TLS_KEY_FILE=" + files.KeyFile, "GRPC_TLS_CA_FILE=" + files.CAFile,
		}
		if name == "gateway" {
			for _, variable := range []string{"SHOP_ID_SECRET", "SHOP_ID_SECRET_PREVIOUS", "SHOP_OPERATOR_TOKENS"} {
				env = append(env, variable+"="+values[variable])
			}
		} else {
			env = append(env, "DATABASE_URL="+r.databaseURL(t, name, values[databasePassword(name)], files.CAFile))
		}
		for _, replica := range r.replicas[name] {
			replica.env = slices.Concat(r.base[replica], env)
		}
	}
}

// restart restarts the replicas of the services, one after the other, with the secrets of now.
func (r *rotation) restart(t *testing.T, names ...string) {
	t.Helper()
	r.configure(t)
	for _, name := range names {
		for _, replica := range r.replicas[name] {
			replica.restart(t)
		}
	}
}

// isOperator says whether a token makes an operator at every gateway.
func (r *rotation) isOperator(t *testing.T, token string) bool {
	t.Helper()
	is := map[int]bool{}
	for _, gateway := range r.gateways() {
		at := shop{url: gateway}
		is[at.call(t, http.MethodGet, "/v1/dead-letters", "", "Authorization", "Bearer "+token).code] = true
	}
	if len(is) != 1 {
		t.Fatalf("the gateways do not agree: %v", slices.Collect(maps.Keys(is)))
	}
	return is[http.StatusOK]
}

func (r *rotation) operatorToken(t *testing.T) {
	const variable = "SHOP_OPERATOR_TOKENS"
	old := strings.TrimPrefix(r.secrets(t)[variable], "ada:")
	r.run(t, r.step(t, "Tokens of operators"))
	first, second, _ := strings.Cut(r.secrets(t)[variable], ",")
	next := strings.TrimPrefix(second, "ada:")
	if first != "ada:"+old || next == second || next == old {
		t.Fatalf("the file has %q", r.secrets(t)[variable])
	}
	r.restart(t, "gateway")
	if !r.isOperator(t, old) || !r.isOperator(t, next) {
		t.Error("both tokens are not good at the same time")
	}
	path := filepath.Join(r.dir, ".env") // the old entry is taken out
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(strings.Replace(string(text), first+",", "", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.restart(t, "gateway")
	if r.isOperator(t, old) || !r.isOperator(t, next) {
		t.Error("the old token is good, or the new one is not")
	}
	r.traffic.flows(t, 20)
}

func (r *rotation) idSecret(t *testing.T) {
	place := func(gateway int, key string) string {
		at := shop{url: r.gateways()[gateway]}
		a := at.call(t, http.MethodPost, "/v1/orders", `{"customer_name":"`+key+`","customer_email":"ada@example.org","order_items":[{"product_id":1,"quantity":1}]}`,
			"Idempotency-Key", key)
		if a.code != http.StatusAccepted && a.code != http.StatusOK {
			t.Fatalf("placing an order: %d %s", a.code, a.body)
		}
		order := a.header.Get("Location")
		r.traffic.accept(key, order)
		return order
	}
	same := func(gateway int, key, before string) {
		t.Helper()
		if after := place(gateway, key); after != before {
			t.Errorf("the order under the key %q is %s at first, and %s at gateway %d", key, before, after, gateway)
		}
	}
	first := place(0, "before both")
	// One that is sent again under another secret before it is decided would have another id, and be rejected.
	r.decided(t, first)
	old := r.secrets(t)["SHOP_ID_SECRET"]
	r.run(t, r.step(t, "The secret of order ids"))
	if now := r.secrets(t); now["SHOP_ID_SECRET"] == old || now["SHOP_ID_SECRET_PREVIOUS"] != old {
		t.Fatal("the secret was not replaced, or the old one not kept")
	}
	// The gateways know the new secret before any uses it: one that did not took an order of the other for another one under the same key.
	r.exchanged = true
	r.restart(t, "gateway")
	same(0, "before both", first)
	r.exchanged = false
	r.configure(t)
	r.replicas["gateway"][0].restart(t)
	second := place(0, "between")
	r.decided(t, second)
	same(1, "between", second)
	r.replicas["gateway"][1].restart(t)
	same(1, "between", second)
	same(0, "before both", first)
	r.traffic.flows(t, 20)
}

func (r *rotation) databasePasswords(t *testing.T) {
	commands := r.step(t, "Passwords in the database")
	for _, name := range services[1:] {
		old := r.secrets(t)[databasePassword(name)]
		r.run(t, strings.NewReplacer("ORDERS_PASSWORD", databasePassword(name), "ROLE orders", "ROLE "+role(name)).Replace(commands))
		if err := r.login(t, name, old); pq.As(err) == nil || pq.As(err).Code != "28P01" {
			t.Errorf("%s still gets in with the old password: %v", name, err)
		}
		if err := r.login(t, name, r.secrets(t)[databasePassword(name)]); err != nil {
			t.Errorf("%s does not get in with the new password: %v", name, err)
		}
		r.traffic.flows(t, 20) // with the connections that are there
		// Without them it waits, which costs no order.
		r.run(t, fmt.Sprintf(`psql "$ADMIN_DATABASE_URL" -qc "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '%s'"`, role(name)))
		r.replicas[name][0].notReady(t, "database: ")
		r.traffic.flows(t, 20)
		r.restart(t, name)
	}
	r.traffic.flows(t, 20)
}

// login logs in to the database as a service does.
func (r *rotation) login(t *testing.T, service, password string) error {
	t.Helper()
	pool, err := sql.Open("postgres", r.databaseURL(t, service, password, r.files(service).CAFile))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	return pool.PingContext(t.Context())
}

func (r *rotation) brokerPasswords(t *testing.T) {
	commands := r.step(t, "Passwords on the broker")
	for _, name := range services {
		old := r.secrets(t)[amqpPassword(name)]
		r.run(t, strings.NewReplacer("ORDER_AMQP_PASSWORD", amqpPassword(name), "change_password order", "change_password "+name).Replace(commands))
		for password, want := range map[string]bool{old: false, r.secrets(t)[amqpPassword(name)]: true} {
			conn, err := amqp.Dial(r.brokerURL(name, password, r.files(name).CAFile))
			if (err == nil) != want || err != nil && !errors.Is(err, amqp.ErrCredentials) {
				t.Errorf("%s, with the new password %v: %v", name, want, err)
			}
			if err == nil {
				_ = conn.Close()
			}
		}
		r.traffic.flows(t, 20)
		r.restart(t, name)
	}
	r.traffic.flows(t, 20)
}

func (r *rotation) certificates(t *testing.T) {
	first := r.newestCA(t)
	commands, reload := r.step(t, "Certificates"), r.step(t, "Certificates")
	for range 2 {
		r.run(t, commands)
		newest := r.newestCA(t)
		if r.brokerShows(t, newest) == nil || r.databaseShows(t, newest) == nil {
			t.Error("the servers show a new certificate before they were told to read it: nothing is tried here")
		}
		r.restart(t, services...) // all connections are new, and the servers still have their old certificates
		r.traffic.flows(t, 20)

		r.databaseTakesCertificate(t)
		r.run(t, reload)
		eventually(t, func() error { return errors.Join(r.brokerShows(t, newest), r.databaseShows(t, newest)) })
		r.restart(t, services...)
		r.traffic.flows(t, 20)
	}
	// After the second time nobody believes the first CA any more.
	for _, name := range services {
		text, err := os.ReadFile(r.files(name).CAFile)
		if err != nil || strings.Contains(string(text), string(first)) {
			t.Errorf("%s still accepts the CA of two rotations ago: %v", name, err)
		}
	}
}

// newestCA is the PEM of the CA that the newest certificates are of.
func (r *rotation) newestCA(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(r.files("order").CAFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	return pem.EncodeToMemory(block)
}

// brokerShows returns nil if the broker shows a certificate of the CA.
func (r *rotation) brokerShows(t *testing.T, ca []byte) error {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: "rabbitmq", MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(t.Context(), "tcp", r.amqps)
	if err != nil {
		return fmt.Errorf("the broker: %w", err)
	}
	return conn.Close()
}

// databaseShows returns nil if the database shows a certificate of the CA.
func (r *rotation) databaseShows(t *testing.T, ca []byte) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	pool, err := sql.Open("postgres", r.databaseURL(t, "order", r.secrets(t)[databasePassword("order")], file))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.PingContext(t.Context()); err != nil {
		return fmt.Errorf("the database: %w", err)
	}
	return nil
}

// databaseTakesCertificate gives PostgreSQL its files, which it wants to own.
func (r *rotation) databaseTakesCertificate(t *testing.T) {
	t.Helper()
	data := filepath.Join(r.own.dir, "postgres", "data")
	files := r.files("db")
	for _, file := range []string{files.CertFile, files.KeyFile} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		mine := filepath.Join(data, filepath.Base(file))
		if err := os.WriteFile(mine, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if owner, err := user.Lookup("postgres"); err == nil && os.Getuid() == 0 {
			uid, err := strconv.Atoi(owner.Uid)
			if err == nil {
				err = os.Chown(mine, uid, -1)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
