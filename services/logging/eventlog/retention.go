package eventlog

import (
	"context"
	"fmt"
)

// expireDeadLetters deletes, in slices, the dead letters that were decided about longer ago than the retention; and no
// sooner than they can be redriven, if events are kept for less than that. One that became a dead letter again stays
// together with the open one, which can be redriven until a week after the first became one.
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

// expireActions deletes records of operators' actions that are older than three years, but no sooner than events. The
// database refuses to delete younger ones.
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
