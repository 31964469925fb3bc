package eventlog

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// filter selects rows of event_log. A field with its zero value does not restrict.
type filter struct {
	orderID         string
	key             keyPattern
	status          string
	publishedAfter  time.Time // this time or later
	publishedBefore time.Time // before this time
}

// searches reports whether rows are read that do not match, because no index has all that the filter asks for.
func (f filter) searches() bool {
	return f.orderID == "" && (f.key.re != nil || !f.publishedAfter.IsZero() || !f.publishedBefore.IsZero())
}

func (f filter) searchLimit() int {
	if f.key.literal != "" {
		return scatteredLimit
	}
	return searchLimit
}

// indexed is the filter without what no index has. Times are those of whole weeks, which are partitions, or several of them.
func (f filter) indexed() filter {
	f.key.re = nil
	f.publishedAfter = f.publishedAfter.Truncate(week)
	if before := f.publishedBefore.Truncate(week); before.Before(f.publishedBefore) {
		f.publishedBefore = before.Add(week)
	}
	return f
}

// conditions are the parts of a WHERE clause, with their arguments. Only the necessary conditions are in the query, so that
// the planner sees which index to use.
type conditions struct {
	sql  []string
	args []any
}

// add adds a condition with one argument, which %s stands for.
func (c *conditions) add(condition string, arg any) {
	c.sql = append(c.sql, fmt.Sprintf(condition, c.placeholder(arg)))
}

// placeholder adds an argument and returns what stands for it.
func (c *conditions) placeholder(arg any) string {
	c.args = append(c.args, arg)
	return fmt.Sprintf("$%d", len(c.args))
}

func (c *conditions) where() string {
	if len(c.sql) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.sql, " AND ")
}

func (f filter) conditions() conditions {
	var c conditions
	if f.orderID != "" {
		c.add("order_id = %s", f.orderID)
	}
	switch {
	case f.key.re != nil:
		c.add("('.' || routing_key) ~ %s", f.key.re.String())
	case f.key.literal != "":
		// Not as an equation: the planner would leave the key out of the order, and read the whole log by id for a rare one.
		c.add("routing_key BETWEEN %[1]s AND %[1]s", f.key.literal)
	}
	if f.status != "" {
		// Not an argument: an index holds the errors alone.
		c.sql = append(c.sql, map[string]string{"success": "status = 'success'", "error": "status = 'error'"}[f.status])
	}
	if !f.publishedAfter.IsZero() {
		c.add("published_at >= %s", f.publishedAfter)
	}
	if !f.publishedBefore.IsZero() {
		c.add("published_at < %s", f.publishedBefore)
	}
	return c
}

// order is the ORDER BY clause of the rows by their ids, the newest first if desc.
func (f filter) order(desc bool) string {
	order := " ORDER BY id"
	if f.key.literal != "" {
		order = " ORDER BY routing_key, id" // one key: the same order, by its index
	}
	if desc {
		order = strings.ReplaceAll(order, "routing_key", "routing_key DESC") + " DESC"
	}
	return order
}

// matches reports whether a row meets the conditions, for the fields that a stream may filter by.
func (f filter) matches(r *row) bool {
	return (f.orderID == "" || r.OrderID == f.orderID) && f.key.matches(r.RoutingKey)
}

// keyPattern is a pattern for routing keys, as in a binding of a topic exchange: words separated by dots, * for one word, #
// for any number. The zero value matches every key.
type keyPattern struct {
	literal string         // if there is no * or #
	re      *regexp.Regexp // of the key with a dot before it, in what Go and PostgreSQL have in common
}

func parseKeyPattern(pattern string) keyPattern {
	if !strings.ContainsAny(pattern, "*#") {
		return keyPattern{literal: pattern}
	}
	var re strings.Builder
	re.WriteByte('^')
	last := ""
	for word := range strings.SplitSeq(pattern, ".") {
		switch {
		case word == "#" && last == "#": // says no more than one of them
		case word == "#":
			re.WriteString(`(?:\.[^.]*)*`)
		case word == "*":
			re.WriteString(`\.[^.]*`)
		default:
			re.WriteString(`\.` + regexp.QuoteMeta(word))
		}
		last = word
	}
	re.WriteByte('$')
	return keyPattern{re: regexp.MustCompile(re.String())}
}

// String returns different texts for different patterns.
func (p keyPattern) String() string {
	if p.re != nil {
		return p.re.String()
	}
	return p.literal
}

func (p keyPattern) matches(key string) bool {
	if p.re != nil {
		return p.re.MatchString("." + key)
	}
	return p.literal == "" || p.literal == key
}
