// Command dev, which is built as shopdev, runs the whole shop and its servers on a developer's machine.
package main

import (
	"os"

	"shop.example/dev/command"
	"shop.example/shop/cli"
)

func main() { os.Exit(cli.Main(command.Root())) }
