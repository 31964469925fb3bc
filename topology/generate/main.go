// Command generate writes what others read of the table of services in package topology: definitions.json, which a broker
// imports, and the list of schemas in db/bootstrap.sql. Its argument is the folder that has topology/ and db/.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"shop.example/platform/messaging/provision"
	"shop.example/topology"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("generate: ")
	if len(os.Args) != 2 {
		log.Fatal("give the folder to write topology/definitions.json and db/bootstrap.sql to")
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

// list is the line of bootstrap.sql that names the schemas.
var list = regexp.MustCompile(`ARRAY \[[^]]*\]`)

func run(dir string) error {
	definitions, err := provision.JSON(topology.Broker())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "topology", "definitions.json"), definitions, 0o644); err != nil { //nolint:gosec // everybody may read it
		return fmt.Errorf("writing the broker's definitions: %w", err)
	}
	bootstrap := filepath.Join(dir, "db", "bootstrap.sql")
	sql, err := os.ReadFile(bootstrap)
	if err != nil {
		return fmt.Errorf("reading the script that makes the roles: %w", err)
	}
	if n := len(list.FindAll(sql, -1)); n != 1 {
		return fmt.Errorf("%s has %d lists of schemas, ARRAY ['…'], instead of one", bootstrap, n)
	}
	schemas := "ARRAY ['" + strings.Join(topology.Schemas(), "', '") + "']"
	if sql = list.ReplaceAllLiteral(sql, []byte(schemas)); bytes.Contains(sql, []byte("['']")) {
		return fmt.Errorf("no service has a schema")
	}
	if err := os.WriteFile(bootstrap, sql, 0o644); err != nil { //nolint:gosec // everybody may read it
		return fmt.Errorf("writing the script that makes the roles: %w", err)
	}
	return nil
}
