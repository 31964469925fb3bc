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
	if err != nil && !errors.As(err, &code) && !errors.Is(err, context.Canceled) { // an interrupt needs no words
		fmt.Fprintln(os.Stderr, "shop:", err)
	}
	os.Exit(command.ExitStatus(err))
}
