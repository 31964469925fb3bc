package brokertest

import (
	"os"
	"testing"

	"shop.example/platform/messaging/provision"
)

// Services prepares the virtual host as that of a shop in operation, and returns the URL of each service, whose user
// has rights to its own alone. The users go with the test.
func (b *Broker) Services(t testing.TB) map[string]string {
	t.Helper()
	if b.services != nil {
		return b.services
	}
	logins, urls := map[string]provision.Login{}, map[string]string{}
	for _, service := range provision.Services() {
		login := provision.Login{User: b.Vhost + "-" + service, Password: "secret-of-" + service}
		t.Cleanup(func() {
			res, err := b.Manage.DeleteUser(login.User)
			if err != nil {
				t.Errorf("deleting user %s: %v", login.User, err)
				return
			}
			_ = res.Body.Close()
		})
		logins[service] = login
		var err error
		if urls[service], err = login.URL(b.URL); err != nil {
			t.Fatal(err)
		}
	}
	if err := provision.Users(t.Context(), os.Getenv("AMQP_MANAGEMENT_URL"), b.Vhost, logins); err != nil {
		t.Fatal(err)
	}
	b.services = urls
	return urls
}
