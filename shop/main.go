// Command shop runs the shop on this machine, and what belongs to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"shop.example/shop/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// The second signal ends the process on the spot; `shop down` clears up after that.
	context.AfterFunc(ctx, stop)
	err := command.Root().ExecuteContext(ctx)
	stop()
	var code command.ExitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		os.Exit(130) // interrupted: nothing went wrong
	default:
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}
