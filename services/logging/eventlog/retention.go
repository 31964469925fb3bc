package eventlog

import (
	"context"
	"fmt"
)

// expireDeadLetters deletes those that were decided about longer ago than events are kept, some at a time; with events
// that are kept for a shorter time than dead letters can be redriven, when nothing depends on them any more. One that died
// again stays with the one that is open: that can be redriven until a week after the first death.
func (p *partitions) expireDeadLetters(ctx context.Context) error {
	if p.retention == 0 {
		return nil
	}
	for {
		result, err := p.db.ExecContext(ctx, `
			DELETE FROM dead_letter WHERE id = ANY (ARRAY(
			    SELECT id FROM dead_letter AS closed
			    WHERE state <> 'OPEN' AND updated_at < now() - $1 * interval '1 second' AND NOT EXISTS (
			        SELECT FROM dead_letter AS again
			        WHERE again.message_id = closed.message_id AND again.source_queue = closed.source_queue AND again.state = 'OPEN')
			    LIMIT $2))`, max(p.retention, p.horizon).Seconds(), expireBatch)
		if err != nil {
			return fmt.Errorf("deleting old dead letters: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n < expireBatch {
			return err
		}
	}
}

// expireActions deletes what operators did three years ago and longer, and no sooner than events. The database refuses
// to delete what is younger.
func (p *partitions) expireActions(ctx context.Context) error {
	if p.retention == 0 {
		return nil
	}
	_, err := p.db.ExecContext(ctx, `
		DELETE FROM operator_action WHERE recorded_at < now() - greatest(interval '3 years', $1 * interval '1 second')`, p.retention.Seconds())
	if err != nil {
		return fmt.Errorf("deleting what operators did long ago: %w", err)
	}
	return nil
}
