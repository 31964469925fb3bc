package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Operators could find an order only in the log, and saw neither what changed a stock nor what they had done themselves.
func (s *shop) operatorsLookUpOrdersStockAndActions(t *testing.T) {
	location := s.place(t, 2, 3)
	s.decided(t, location)
	id := strings.TrimPrefix(location, "/v1/orders/")
	end := id[len(id)-8:]
	s.call(t, http.MethodPatch, "/v1/inventory/4", `{"on_hand": 444}`, "Content-Type", "application/json", "Authorization", "Bearer "+operatorToken)

	b := browse(t, s.operatorLink())
	b.until("document.querySelector('#lookup-product option[value=\"2\"]')")
	find := func(found string) {
		b.click("#lookup-form button")
		b.until(fmt.Sprintf("!document.querySelector('#lookup-orders .lookup-note').textContent.startsWith('Looking') && document.querySelector('#lookup-orders').textContent.includes(%q)", found))
	}
	b.fill("#lookup-id", strings.ToUpper(end))
	find("1 found.")
	b.text("#lookup-orders li", "CONFIRMED")
	b.text("#lookup-orders li a", end)
	eval[any](b, `document.querySelector('#lookup-product').value = "2"`)
	find("1 found.")
	eval[any](b, `document.querySelector('#lookup-state').value = "REJECTED"`)
	find("No such orders.")
	rejected := s.place(t, 2, 10_000)
	s.decided(t, rejected)
	b.fill("#lookup-id", rejected[len(rejected)-8:])
	find("10000 × Phone")
	b.mayComplain("status of 400")
	b.fill("#lookup-id", "not hexadecimal")
	find("an order’s id has only digits")

	eval[any](b, "document.querySelector('#lookup-stock').open = true")
	eval[any](b, `{ const select = document.querySelector('#lookup-history'); select.value = "2"; select.dispatchEvent(new Event('change')); }`)
	b.until(fmt.Sprintf("[...document.querySelectorAll('#lookup-movements li')].some((row) => /−3.*sold.*%s/.test(row.textContent))", end))
	eval[any](b, "document.querySelector('#lookup-actions').open = true")
	b.until("[...document.querySelectorAll('#lookup-actions li')].some((row) => /UpdateItem.*item 4/.test(row.textContent))")
	b.click("#lookup-movements li a")
	b.text("#slip-id", end)
	// That an operator had cancelled an order was recorded nowhere if it was done on the page.
	b.until("!" + disabled("#cancel"))
	b.click("#cancel")
	b.text("#slip-state", "CANCELLED")
	eventually(t, func() error {
		a := s.get(t, "/v1/operator-actions?page_size=20")
		if !strings.Contains(string(a.body), "CancelOrder") || !strings.Contains(string(a.body), id) {
			return fmt.Errorf("no operator has cancelled %s: %s", id, a.body)
		}
		return nil
	})
}

// What an audit had found was seen on the page only where experiments can be run, and only if it was run from the page.
func TestPage_OperatorsOfAnyShopSeeTheLastAudit(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.decided(t, s.place(t, 1, 1))
	s.settled(t)
	b := browse(t, s.operatorLink())
	b.text("#role", "operator")
	look := func() {
		eval[any](b, `{ const d = document.querySelector('#lookup-audit'); d.open = false; d.open = true; }`)
	}
	look()
	b.text("#audit-body", "No audit was reported yet: run shop audit --report.")

	audit := exec.CommandContext(t.Context(), filepath.Join(mustBinaries(t), "shop"), "audit", "--wait", "30s", "--report", "--server", s.url, "--token", operatorToken)
	audit.Env = append(os.Environ(), "DATABASE_URL="+s.database)
	if out, err := audit.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	look()
	b.text("#audit-body caption", "Audit of 1 order, ")
	b.text("#audit-body caption", "reported by operator token")
	b.until("document.querySelectorAll('#audit-body tbody tr').length > 10 && !document.querySelector('#audit-body .wrong')")

	if a := s.call(t, http.MethodGet, "/v1/audit", ""); a.code != http.StatusUnauthorized {
		t.Errorf("for anybody: %d %s", a.code, a.body)
	}
}
