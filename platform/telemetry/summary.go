package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// summaryWindow is the time that one summary is about.
	summaryWindow = time.Second
	// maxLines is how often the same message is written in a window before the others are counted. A person who places an
	// order sees every line about it: the log gets ten events of one, or a few more.
	maxLines = 50
	// maxMessages bounds what is remembered. Messages are constants, and a service has fewer at info.
	maxMessages = 200
)

// summaries keep a log readable and cheap under load: if the same info message is logged more than maxLines times within a
// second, the rest is counted, and once a second written as one line with the number. Debug lines, warnings and errors are
// always written, and at level debug everything is.
type summaries struct {
	mu       sync.Mutex
	messages map[string]*summary
	closed   bool // everything passes
}

// summary counts one message.
type summary struct {
	message string
	begin   time.Time // of the window
	passed  int
	counted int
	// busy says that the last window had too many: the next one begins with no lines of its own.
	busy  bool
	timer *time.Timer  // ends the window, if something was counted
	out   slog.Handler // takes the summary: that of the first line that was counted
}

func newSummaries() *summaries { return &summaries{messages: map[string]*summary{}} }

// pass says whether a message may be written to out. If not it has been counted, and out gets the count at the end of the window.
func (s *summaries) pass(message string, out slog.Handler) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.messages[message]
	if m == nil {
		if s.closed || len(s.messages) == maxMessages {
			return true
		}
		m = &summary{message: message}
		s.messages[message] = m
	}
	if m.counted == 0 {
		now := time.Now()
		age := now.Sub(m.begin)
		m.busy = m.busy && age < summaryWindow
		if age >= summaryWindow {
			m.begin, m.passed = now, 0
		}
		if !m.busy && m.passed < maxLines {
			m.passed++
			return true
		}
		m.out = out
		m.timer = time.AfterFunc(summaryWindow-now.Sub(m.begin), func() { s.end(m) })
	}
	m.counted++
	return false
}

// end writes a summary if something was counted, and begins the next window.
func (s *summaries) end(m *summary) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.counted == 0 {
		return
	}
	now := time.Now()
	line := slog.NewRecord(now, slog.LevelInfo, m.message, 0)
	line.AddAttrs(slog.Int("times", m.counted), slog.Duration("within", now.Sub(m.begin).Round(time.Millisecond)))
	_ = m.out.Handle(context.Background(), line) // there is nowhere to report a log line that cannot be written
	*m = summary{message: m.message, begin: now, busy: m.counted > maxLines}
}

// close writes what was counted. From then on every line is written.
func (s *summaries) close() {
	s.mu.Lock()
	all := s.messages
	s.closed, s.messages = true, nil
	s.mu.Unlock()
	for _, m := range all {
		if m.timer != nil {
			m.timer.Stop()
		}
		s.end(m)
	}
}

// summaryHandler passes on what summaries let pass.
type summaryHandler struct {
	slog.Handler
	*summaries
}

func (h summaryHandler) Handle(ctx context.Context, record slog.Record) error {
	if record.Level == slog.LevelInfo && !h.pass(record.Message, h.Handler) {
		return nil
	}
	return h.Handler.Handle(ctx, record)
}

func (h summaryHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return summaryHandler{h.Handler.WithAttrs(attrs), h.summaries}
}

func (h summaryHandler) WithGroup(name string) slog.Handler {
	return summaryHandler{h.Handler.WithGroup(name), h.summaries}
}
