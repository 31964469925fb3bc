package messaging

// SetBlocked is what happens when the broker says that it takes no messages, or that it takes them again. A broker that
// is really short of memory is so for all tests.
func (c *Connection) SetBlocked(blocked bool) { c.setBlocked(blocked) }
