package e2e

import (
	"fmt"
	"net/http"
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
}
