package e2e

import (
	"testing"

	"shop.example/db/dbtest"
)

// Each service may have a database of its own, on another server for example.
func TestDatabases_EachServiceHasItsOwn(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	f.apart = map[string]string{"inventory": dbtest.New(t), "logging": dbtest.New(t), "webhooks": dbtest.New(t)}
	for schema, database := range f.apart { // a service is named as its schema, except order
		f.replicas[schema][0].env = append(f.replicas[schema][0].env, "DATABASE_URL="+database)
	}
	f.up(t)
	tr := f.traffic(t, f.unlimitedStock(t), answerLimit, f.gateways()...)
	tr.flows(t, 50)
	f.comesToRest(t, tr.end(t))
	tr.isDecided(t, &f.shop)
}
