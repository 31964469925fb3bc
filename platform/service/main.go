package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/telemetry"
)

// gcPercent is GOGC unless the environment sets it. The live heap is small compared with what each order allocates: with
// the default the garbage collector takes a fifth of our CPU.
const gcPercent = 250

// TuneGC sets the garbage collector for a process that runs services, unless the variable GOGC is set.
func TuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// Main is the body of a service's main function: it calls run with a context that ends at SIGINT or SIGTERM. If run returns an
// error, that is written to standard error as one line, in the LOG_FORMAT, and the exit code is 1. A second signal ends the
// process at once.
func Main(name string, run func(context.Context) error) {
	cfg, err := env.ParseAs[telemetry.Config]()
	if err != nil {
		cfg = telemetry.Config{LogFormat: telemetry.Text} // run says what is wrong with it
	}
	cfg.Service = name
	log := slog.New(telemetry.NewHandler(cfg))
	telemetry.LogLibraries(log)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	TuneGC()
	err = withProfiles(ctx, log, run)
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return
	}
	if cfg.LogFormat == telemetry.JSON {
		log.Error("the program has failed", "error", err)
	} else {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	os.Exit(1)
}

func withProfiles(ctx context.Context, log *slog.Logger, run func(context.Context) error) error {
	stop, err := StartProfiles(log)
	if err != nil {
		return err
	}
	defer stop()
	return run(ctx)
}
