// Command shop is the command line tool for customers, operators and administrators of a shop. It is part of the production
// image. (shopdev runs a shop on a developer's machine, shopbench measures one.)
package main

import (
	"os"

	"shop.example/shop/cli"
	"shop.example/shop/command"
)

func main() { os.Exit(cli.Main(command.Root())) }
