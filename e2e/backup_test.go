package e2e

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shop.example/db"
	"shop.example/platform/messaging/provision"
	"shop.example/platform/testkit/brokertest"
	"shop.example/topology"
)

// The commands in docs/operations.md are run, from the installation on new servers to the restore after all data is lost.
// The services have the roles and users that the documents create.
func TestOperations_InstallBackupAndRestoreAsDocumented(t *testing.T) {
	t.Parallel()
	own := newServers(t)
	passwords := map[string]string{}
	for _, role := range db.Schemas() {
		passwords[role] = "password0of0" + role
	}
	adminURL, err := db.URL(own.database, "postgres", passwordOf(t, own.database))
	if err != nil {
		t.Fatal(err)
	}
	env := append(shellTools(t), "SERVER_URL="+own.database, "ADMIN_URL="+adminURL, "RABBITMQ_URL="+own.management,
		"ORDERS_PASSWORD="+passwords["orders"], "INVENTORY_PASSWORD="+passwords["inventory"], "LOGGING_PASSWORD="+passwords["logging"], "WEBHOOKS_PASSWORD="+passwords["webhooks"])
	run := scenesOf(t, "docs/operations.md", env)
	run("install")

	f := newDeployment(t, deploymentOptions{})
	f.broker, f.amqp, f.database = &brokertest.Broker{URL: own.amqp}, usersOf(t, own), adminURL
	f.servers(t, own.amqp, adminURL)
	for service, role := range map[string]string{"order": "orders", "inventory": "inventory", "logging": "logging", "webhooks": "webhooks"} {
		databaseURL, err := db.URL(own.database, role, passwords[role])
		if err != nil {
			t.Fatal(err)
		}
		f.replicas[service][0].env = append(f.replicas[service][0].env, "DATABASE_URL="+databaseURL)
	}
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 40)
	orders := tr.end(t)
	f.comesToRest(t, orders)
	run("backup")
	wrong := parseURL(t, own.management)
	wrong.User = url.UserPassword("guest", "not the password")
	for _, scene := range []string{"backup", "restore-broker"} { // the answer of the broker was taken for its definitions
		for _, b := range blocksOfScene(t, "docs/operations.md", scene) {
			terminal := &terminal{dir: t.TempDir(), env: append(env, "RABBITMQ_URL="+wrong.String())}
			if err := os.WriteFile(filepath.Join(terminal.dir, "broker.json"), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := terminal.try(t, b); err == nil || !strings.Contains(string(out), "401") {
				t.Errorf("%s with a wrong password of the broker: %v\n%s", b, err, out)
			}
		}
	}

	// Some orders are decided after the backup and lost with the database; of some the broker alone knows.
	f.up(t)
	lost := f.place(t, 1, 1)
	f.decided(t, lost)
	for _, name := range services[1:] {
		f.replicas[name][0].term(t)
	}
	const waiting = 5
	for range waiting {
		f.place(t, 1, 1)
	}
	server := shop{database: own.database}
	loseDatabase := func() { mustExec(t, server.openDatabase(t), "DROP DATABASE shopdb WITH (FORCE)") }
	loseDatabase()
	run("restore")
	for _, name := range []string{"inventory", "order", "logging", "webhooks"} {
		f.replicas[name][0].start(t)
		f.replicas[name][0].waitReady(t)
	}
	f.decides(t, orders+waiting)
	if again := texts(t, f.openDatabase(t), `SELECT id::text FROM orders.orders WHERE id = '`+strings.TrimPrefix(lost, "/v1/orders/")+`'`); len(again) > 0 {
		t.Errorf("order %s is in a backup that was made before it", again)
	}
	f.comesToRest(t, orders+waiting)
	run("audit")

	loseBroker := func() {
		for _, step := range []string{"stop_app", "reset", "start_app"} {
			own.control(t, step)
		}
	}
	loseBroker()
	run("restore-broker")
	f.up(t)
	f.place(t, 1, 1)
	f.comesToRest(t, orders+waiting+1)
	run("audit")

	// Both: what was decided since the backup and what waited. Whoever repeats the call gets the same order, once.
	f.up(t)
	decided := f.keyed(t, "decided since the backup")
	f.decided(t, decided)
	f.settled(t)
	for _, name := range services[1:] {
		f.replicas[name][0].term(t)
	}
	waited := f.keyed(t, "waited")
	f.replicas["gateway"][0].term(t)
	loseDatabase()
	loseBroker()
	run("restore")
	run("restore-broker")
	f.up(t)
	for range 2 {
		for key, location := range map[string]string{"decided since the backup": decided, "waited": waited} {
			if again := f.keyed(t, key); again != location {
				t.Errorf("the order of %q was %s, and is %s", key, location, again)
			}
			if o := f.decided(t, location); o.State != "CONFIRMED" {
				t.Errorf("order %s is %s after it was placed again", o.ID, o.State)
			}
		}
	}
	f.comesToRest(t, orders+2)
	run("audit")
}

// scenesOf returns what executes the blocks of a document that have a name, all in one folder.
func scenesOf(t *testing.T, document string, env []string) func(scene string) {
	t.Helper()
	terminal := &terminal{dir: workspace(t), env: env}
	return func(scene string) {
		t.Helper()
		for _, b := range blocksOfScene(t, document, scene) {
			terminal.do(t, b)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

func blocksOfScene(t *testing.T, document, scene string) []block {
	t.Helper()
	text, err := os.ReadFile("../" + document)
	if err != nil {
		t.Fatal(err)
	}
	blocks := slices.DeleteFunc(blocksOf(document, string(text)), func(b block) bool { return b.tag != executed || b.rest != scene })
	if len(blocks) == 0 {
		t.Fatalf("%s has no block %q", document, scene)
	}
	return blocks
}

// usersOf makes the users of the services on a broker, and returns the URLs with them.
func usersOf(t *testing.T, s *servers) map[string]string {
	t.Helper()
	logins := map[string]provision.Login{}
	for _, service := range topology.Names() {
		logins[service] = provision.Login{User: service, Password: "password of " + service}
	}
	if err := provision.Users(t.Context(), topology.Broker(), s.management, "/", logins); err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{}
	for service, login := range logins {
		url, err := login.URL(s.amqp)
		if err != nil {
			t.Fatal(err)
		}
		urls[service] = url
	}
	return urls
}

func passwordOf(t *testing.T, url string) string {
	t.Helper()
	password, _ := parseURL(t, url).User.Password()
	return password
}
