package intake

import (
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// preferences are those of the header Prefer (RFC 7240) that the shop supports.
type preferences struct {
	wait  time.Duration // how long the client prefers to wait for the outcome; 0 for not at all
	async bool          // whether it prefers an answer before the outcome, which it gets anyway if it does not wait
}

// readPreferences reads the header Prefer of a call. Unknown and malformed preferences are ignored, as RFC 7240 demands.
func readPreferences(ctx context.Context) (p preferences) {
	given := metadata.ValueFromIncomingContext(ctx, "prefer")
	if len(given) == 0 {
		return p
	}
	values := parsePrefer(strings.Join(given, ","))
	_, p.async = values["respond-async"]
	if seconds, err := strconv.ParseUint(values["wait"], 10, 31); err == nil {
		p.wait = min(time.Duration(seconds)*time.Second, maxWait)
	}
	return p
}

// announce sets the header Preference-Applied, which tells the client which preferences were followed. pending says that
// the response comes before the outcome.
func (p preferences) announce(ctx context.Context, pending bool) {
	var applied []string
	if p.async && pending {
		applied = append(applied, "respond-async")
	}
	if p.wait > 0 {
		applied = append(applied, "wait="+strconv.Itoa(int(p.wait.Seconds())))
	}
	if len(applied) > 0 {
		_ = grpc.SetHeader(ctx, metadata.Pairs("preference-applied", strings.Join(applied, ", "))) // fails without a call
	}
}

// parsePrefer returns the preferences by their names, in lower case. Of several with one name the first counts. Parameters
// are ignored.
func parsePrefer(header string) map[string]string {
	values := map[string]string{}
	for _, preference := range splitUnquoted(header, ',') {
		name, value, _ := strings.Cut(splitUnquoted(preference, ';')[0], "=")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if _, again := values[name]; again {
			continue
		}
		values[name] = strings.Trim(value, `"`)
	}
	return values
}

// splitUnquoted splits a text at each separator that is not in a quoted string.
func splitUnquoted(text string, separator byte) (parts []string) {
	begin, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == separator && !quoted:
			parts = append(parts, text[begin:i])
			begin = i + 1
		}
	}
	return append(parts, text[begin:])
}
