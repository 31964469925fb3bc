package failpoint_test

import (
	"fmt"

	"shop.example/platform/failpoint"
)

// Built with the tag crashpoints and started with SHOP_CRASH_AT=account.debited, the program would end at Hit.
func ExampleHit() {
	debit := func() { fmt.Println("debited") }
	credit := func() { fmt.Println("credited") }
	debit()
	failpoint.Hit("account.debited")
	credit()
	// Output:
	// debited
	// credited
}
