package db

// What the tests see beside the API: Bootstrap for a database of another name, and the migration files.
var (
	BootstrapDatabase = bootstrap
	MigrationsOf      = migrationsOf
)
