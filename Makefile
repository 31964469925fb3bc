# What one does with the shop; `make` alone lists it. Go and make are enough: targets that need more install it, or say what
# to install.
ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error This is make $(MAKE_VERSION), and GNU make 4.3 or newer is needed (macOS: brew install make, then call it gmake))
endif
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# All builds but those with the race detector are pure Go, and so share one build cache.
export CGO_ENABLED := 0

# A module is called after its folder, whatever the path of this one is.
MODULES = $(patsubst shop.example/%,./%,$(shell go list -m))
# gen is written by protoc's plugins and linted as proto/.
LINTED = $(filter-out ./gen,$(MODULES))
# The developer tools, modules outside the workspace.
TOOLS = $(patsubst %/go.mod,./%,$(wildcard tools/*/go.mod))
# What is shipped, and the licences that what it links may have. The MPL asks for its own files to stay open: they are used
# as they are.
PROGRAMS = ./gateway $(wildcard ./services/*) ./shop
SERVICES = $(notdir $(filter-out ./shop,$(PROGRAMS)))
LICENCES = Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT,MPL-2.0
GENERATED = gen/shop gen/openapi/shop.openapi.json gen/asyncapi/shop.asyncapi.yaml third_party/proto topology/definitions.json db/bootstrap.sql gateway/web/assets/contracts.js deploy/grafana/dashboards \
    deploy/prometheus/prometheus.yaml deploy/prometheus/compose.yaml deploy/kubernetes/production/services.yaml deploy/kubernetes/production/rules.yaml
# What contracts are compared with: what others can have already.
BASE ?= $(shell { git rev-parse -q --verify origin/main || git rev-parse -q --verify main; } 2>/dev/null)

# A variable of the user as one word of the shell, as it was given: a $ in it is no variable of make.
quoted = '$(subst ','\'',$(value $1))'

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Run -------------------------------------------------------------------------------------------------------------

.PHONY: up
up: .bin/shop .bin/shopdev ## Run the whole shop on this machine, on localhost:3000, until Ctrl-C
	@.bin/shopdev up

.PHONY: demo
demo: .bin/shopdev ## The same, then send the sample order, show its way, and stop
	@.bin/shopdev demo

.PHONY: down
down: .bin/shopdev ## Stop and remove what make up started, its data too (YES=1: without asking)
	@.bin/shopdev down $(if $(YES),--yes)

# --- Check -----------------------------------------------------------------------------------------------------------

.PHONY: unit
# Never from the cache, which does not notice that a document has changed.
unit: ## Run the tests that need no server, in seconds (docs/adr/0025)
	@env -u DATABASE_URL -u AMQP_URL -u AMQP_MANAGEMENT_URL go test -short -count=1 $(value ARGS) $(MODULES:%=%/...) | grep -v '\[no test files\]'

.PHONY: t
t: .bin/shopdev ## Test a package on servers that keep running: make t PKG=./services/order/ordering RUN=Ship ARGS='-v -race'
	@$(if $(value PKG),,$(error Say which package: make t PKG=./services/order/ordering))\
	$(if $(findstring -race,$(value ARGS)),CGO_ENABLED=1) .bin/shopdev exec --fast --keep -- go test -count=1 $(if $(value RUN),-run $(call quoted,RUN)) $(value ARGS) $(value PKG)

.PHONY: test
test: setup generated breaking lint rules manifests modules race ## Everything that has to pass

.PHONY: setup
setup: ## Install what make test needs besides Go and make (Debian, Ubuntu), or say what is missing
	@tools/setup.sh

.PHONY: generated
generated: .bin/buf # Fails where a generated file is not what make generate and make protos write.
	@echo 'comparing $(GENERATED) with their sources'
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	.bin/buf generate -o "$$fresh"; \
	GOWORK=off go -C tools/protos run . "$$fresh/third_party/proto"; \
	mkdir -p "$$fresh"/{topology,db,gateway/web/assets,deploy/kubernetes/production}; cp db/bootstrap.sql "$$fresh/db"; cp -r deploy/prometheus "$$fresh/deploy"; \
	go run ./topology/generate "$$fresh"; \
	GOWORK=off go -C tools/dashboards run . "$$fresh/deploy/grafana/dashboards"; \
	for path in $(GENERATED); do \
	    diff -r "$$path" "$$fresh/$$path" || { echo "$$path is not what its source says: run make generate and make protos" >&2; exit 1; }; \
	done

.PHONY: breaking
breaking: .bin/buf ## Compare the contracts with main (BASE=commit for another), and fail where they break clients
ifeq ($(BASE),)
	@echo 'There is no main to compare the contracts with.'
else
	.bin/buf breaking --against '.git#ref=$(BASE)' --against-config buf.yaml
	@echo 'Nothing breaks clients by its type.'
endif

.PHONY: lint
lint: .bin/buf .bin/golangci-lint ## Lint contracts and code
	.bin/buf lint
	.bin/buf format --diff --exit-code proto
	.bin/golangci-lint run $(LINTED:%=%/...)

.PHONY: rules
rules: .bin/promtool ## Check and test the rules of Prometheus in deploy/prometheus
	@.bin/promtool check config deploy/prometheus/prometheus.yaml deploy/prometheus/compose.yaml
	@cd deploy/prometheus && ../../.bin/promtool test rules rules_test.yaml

.bin/promtool .bin/prometheus &: tools/prometheus.sh
	@tools/prometheus.sh && touch -c .bin/promtool .bin/prometheus

.PHONY: modules
modules: # Each module has to do without the workspace too, and its go.mod has to be tidy.
	@echo 'checking each module by itself: go.mod, build, vet'; failed=; \
	for module in $(TOOLS); do \
	    GOWORK=off go -C "$$module" mod tidy -diff >/dev/null || { echo "$$module: go.mod or go.sum is not up to date: run make tidy"; failed=1; }; \
	done >&2; \
	for module in $(MODULES); do \
	    GOWORK=off go -C "$$module" mod tidy -diff >/dev/null || { echo "$$module: go.mod or go.sum is not up to date: run make tidy"; failed=1; continue; }; \
	    GOWORK=off go -C "$$module" vet ./... || failed=1; \
	done >&2; \
	[[ -z $$failed ]]

.PHONY: manifests
manifests: ## Check deploy/kubernetes by the libraries of Kubernetes itself
	GOWORK=off go -C tools/kubernetes test ./...

# Ends a test program that hangs. It is no measure of how fast a machine is: waits inside tests have bounds of their own.
TEST_TIMEOUT ?= 2h

# Tests that take the longest: they start and restart servers, fill queues with the largest messages, replace every secret, measure
# shops, use the page in a browser. CI runs them, too.
LONG = ^Test(Page_|DocsPage_|Start_|Rotation_|KilledShop_|Servers_Blocked|Sizes_TheLargest|Operations_Install|Operations_RestoresToAMoment|Operations_Archiving|Down_AsksBefore|Databases_EachService|Database_AStandby|Database_SlowOrAway|DeadLetters_LargeOnes|DeadLetters_WhatKills|Delivery_ADeadReceiver|Chaos_|Controls_WhatBreaks|Controls_AnExperimentThat|Disaster_|Scripts|Audit_ABusyShop|Run_EachServiceIn|Run_MeasuresShop|Run_BacklogIs|Topology_ServicesWith|Topology_WhatIsDeleted|Topology_OrdersThatWaited|Race_TheLast|Race_OrdersOfSeveral|Inventory_AbsentForLonger|Idle_|Growth_MeasuresA)
RACE = CGO_ENABLED=1 .bin/shopdev exec --fast -- .bin/gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg -- \
    -race -shuffle=on -count=1 -timeout=$(TEST_TIMEOUT)

.PHONY: race
race: .bin/shopdev .bin/gotestsum # Never from the cache: the servers they talk to are no part of its key.
	$(RACE) -skip '$(LONG)' $(MODULES:%=%/...)

.PHONY: long
long: .bin/shopdev .bin/gotestsum ## The tests that make test leaves out: those of half a minute or more, that start servers, or in a browser
	$(RACE) -run '$(LONG)' ./e2e ./bench/measure ./dev/stack ./services/webhooks/webhook

# A folder, and the file with its line of wiring.
FEATURES = gateway/intermediary:gateway/server/features.go gateway/web:gateway/server/features.go dev/controls:dev/command/features.go

.PHONY: removable
removable: ## Build the shop without each feature that can be removed, in a copy of the tree
	@for feature in $(FEATURES); do \
	    folder=$${feature%:*}; wiring=$${feature#*:}; name=$${folder##*/}; \
	    echo "removing $$folder and its line in $$wiring"; \
	    copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do [[ ! -e $$file ]] || printf '%s\0' "$$file"; done | \
	        tar -c --null -T - | tar -x -C "$$copy"; \
	    rm -r "$$copy/$$folder"; \
	    sed -i.before "\,$$folder\",d; /$$name\.[A-Z][a-z]*[(,]/d" "$$copy/$$wiring"; \
	    (cd "$$copy" && gofmt -l gateway dev && go build ./gateway/... ./dev/... && go vet ./gateway/... ./dev/...); \
	    rm -rf "$$copy"; \
	done

.PHONY: sbom
sbom: .bin/cyclonedx-gomod .bin/go-licenses ## List what the programs link: versions, licences, CycloneDX files; fail on a licence that is not allowed
	@mkdir -p .bin/sbom
	@go build -trimpath -o .bin/sbom/ $(PROGRAMS)
	@for program in $(notdir $(PROGRAMS)); do \
	    .bin/cyclonedx-gomod bin -json -std -noserial -notimestamp -output .bin/sbom/$$program.cdx.json .bin/sbom/$$program 2>.bin/sbom/cyclonedx.log || \
	        { cat .bin/sbom/cyclonedx.log >&2; exit 1; }; \
	done
	@.bin/go-licenses report $(PROGRAMS) --ignore shop.example --template tools/go-licenses/list.tmpl 2>.bin/sbom/report.log | sort -u | tee .bin/sbom/licences.txt
	@.bin/go-licenses check $(PROGRAMS) --ignore shop.example --allowed_licenses=$(LICENCES) >.bin/sbom/check.log 2>&1 || \
	    { grep -v 'that can.t be inspected\|\.s$$' .bin/sbom/check.log >&2; echo 'Use another library, or allow the licence in the Makefile.' >&2; exit 1; }
	@echo 'for each program a CycloneDX file: .bin/sbom/*.cdx.json'

.PHONY: chaos
chaos: .bin/shopdev ## Place orders for two minutes while everything fails (CHAOS_DURATION=1h, CHAOS_SEED=42)
	@echo 'The seed and the figures; what the services say is in .bin/chaos.log'
	@CHAOS_DURATION=$${CHAOS_DURATION:-2m} .bin/shopdev exec --fast -- go test -v -run '^TestChaos_' -count=1 -timeout=24h ./e2e | \
	    tee .bin/chaos.log | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: soak
soak: .bin/shopdev ## Place orders in waves for eight hours, with faults now and then: nothing may grow (SOAK=30m, SOAK_SEED=42)
	@echo 'What is used and what waits, every minute: .bin/soak.csv; what the services say: .bin/soak.log'
	@.bin/shopdev exec --fast -- go test -tags soak -v -run '^TestSoak_' -count=1 -timeout=0 ./e2e | \
	    tee .bin/soak.log | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: cluster
cluster: ## Take brokers, the database and replicas away from a cluster under load, ten minutes (CLUSTER_SEED=42 CLUSTER_AWAY=30s CLUSTER_RATE=100)
	@echo 'What the services say: .bin/cluster.log'
	@mkdir -p .bin; go test -tags cluster -v -run '^TestCluster_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | \
	    tee .bin/cluster.log | grep --line-buffered -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:|^ *\|'

.PHONY: clocks
clocks: ## Set the clocks of servers and services wrong under load, a quarter of an hour; needs libfaketime (CLOCKS_ONLY=database)
	@echo 'What the services say: .bin/clocks.log'
	@mkdir -p .bin; go test -tags clocks -v -run '^TestClocks_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | \
	    tee .bin/clocks.log | grep --line-buffered -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:|^ *\|'

.PHONY: webhooks
webhooks: .bin/shopdev ## Deliver 100,000 events to receivers that fail, while the service is killed at each step (WEBHOOK_DELIVERIES=10000)
	@.bin/shopdev exec --fast -- go test -tags webhooks -v -run '^TestWebhooks_EveryEvent' -count=1 -timeout=24h ./e2e | \
	    tee .bin/webhooks.log | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: upgrade
upgrade: .bin/shopdev ## Upgrade the release before this one under load, replica by replica (UPGRADE_FROM=commit)
	@.bin/shopdev exec --fast -- go test -tags upgrade -v -run '^TestUpgrade_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: alerts
alerts: .bin/shopdev .bin/prometheus ## Provoke the alerts on running shops with a real Prometheus, about half an hour (ALERTS_QUIET=10m)
	@.bin/shopdev exec --fast -- go test -tags alerts -v -run '^TestAlerts_' -count=1 -parallel=10 -timeout=$(TEST_TIMEOUT) ./e2e | grep -E '^ *(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: dashboards
dashboards: .bin/shopdev .bin/prometheus ## Ask a real Prometheus, which watches a running shop, every query of the dashboards
	@.bin/shopdev exec --fast -- go test -tags alerts -v -run '^TestDashboards_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | grep -E '^ *(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: pages
pages: .bin/shopdev ## Measure the page: frames while 500 events/s come, and what 200 open pages cost (needs Chromium)
	@.bin/shopdev exec --fast -- go test -tags page -v -run '^TestPageSpeed_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | grep -E '^ *(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

LIGHTHOUSE = .bin/lighthouse/node_modules/.bin/lighthouse

.PHONY: lighthouse
lighthouse: .bin/shopdev $(LIGHTHOUSE) ## Let Lighthouse judge the page and /docs: 100 on a desktop, at least 95 on a phone (needs Chromium, Node)
	@LIGHTHOUSE="$(CURDIR)/$(LIGHTHOUSE)" .bin/shopdev exec --fast -- go test -tags page -v -run '^TestPageLighthouse' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | \
	    grep -E '^ *(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

$(LIGHTHOUSE):
	@command -v npm >/dev/null || { echo 'npm is missing. Debian, Ubuntu: apt-get install nodejs npm' >&2; exit 1; }
	@npm install --silent --no-fund --no-audit --prefix .bin/lighthouse lighthouse@12.8.2

.PHONY: pgbouncer
pgbouncer: .bin/shopdev ## Test the shop behind a PgBouncer (Debian: apt-get install pgbouncer)
	@.bin/shopdev exec --fast -- go test -tags pgbouncer -v -run '^TestPgBouncer_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: guides
guides: .bin/shopdev .bin/buf ## Follow the guides of docs/extending.md in copies of the project, build and test the results
	@.bin/shopdev exec --fast -- go test -tags guides -v -run '^TestGuides_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e

.PHONY: clients
clients: .bin/shopdev contracts ## Generate clients of other languages, compile and run them (needs Node, Python, a JDK, Maven, the network)
	@for program in node npm python3 javac mvn; do command -v $$program >/dev/null || \
	    { echo "$$program is missing. Debian, Ubuntu: apt-get install nodejs npm python3-venv default-jdk-headless maven" >&2; exit 1; }; done
	@.bin/shopdev exec --fast -- go test -tags clients -v -run '^TestClients_' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | \
	    tee .bin/clients.log | grep -E '^(\s*--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: bench
bench: .bin/shopbench ## Measure the shop and the bare minimum in turns (BENCH='--runs 5 --json' for other flags of shopbench)
	@.bin/shopbench $${BENCH:---baseline --runs 3}

.PHONY: growth
growth: .bin/shopbench ## Measure the shop with 0, 100,000 and 1,000,000 orders: rates, lists, audit, sizes (GROWTH=10000000, ARGS='--runs 5')
	@.bin/shopbench growth --orders $${GROWTH:-1000000} --json .bin/growth.json $(value ARGS)

.PHONY: contention
contention: .bin/shopbench ## 10,000 orders for one product within a second, two replicas of everything: who waits, and for what (CONTENTION='--runs 3')
	@.bin/shopbench --rate 10000 --duration 1s --clients 500 --products 1 --replicas 2 --contention $(value CONTENTION)

.PHONY: idle
idle: .bin/shopdev ## What make up and each service cost while nobody uses them, how long they take to be ready, and what is in the programs
	@.bin/shopdev exec -- go test -tags idle -v -run '^TestIdle_Table' -count=1 -timeout=$(TEST_TIMEOUT) ./e2e | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'
	@tools/programs.sh $(PROGRAMS)

BENCHMARKS ?= .

.PHONY: benchstat
benchstat: .bin/shopdev .bin/benchstat ## Compare Go's benchmarks with main, in turns (BASE=commit, BENCHMARKS=regexp, ROUNDS=6)
	@base=$$(mktemp -d); trap 'git worktree remove --force "$$base"' EXIT; git worktree add -q --detach "$$base" $(BASE); \
	packages=$$(cd "$$base"; grep -rlE '^func Benchmark' --include='*_test.go' gateway platform services | xargs -n1 dirname | sort -u | sed 's|^|./|'); \
	rm -f .bin/base.txt .bin/this.txt; \
	for round in $$(seq $${ROUNDS:-6}); do \
	    for tree in "base $$base" "this $(CURDIR)"; do \
	        .bin/shopdev exec --fast -- go -C "$${tree#* }" test -run '^$$' -bench $(call quoted,BENCHMARKS) -timeout=1h $$packages >>".bin/$${tree%% *}.txt" || \
	            { tail -20 ".bin/$${tree%% *}.txt"; exit 1; }; \
	    done; \
	done; \
	cd .bin; ./benchstat base.txt this.txt

.PHONY: gate
gate: .bin/shopbench ## Fail if the hot parts allocate or take 10 % more than in main, and show where (BASE=commit, GATE='--rounds 9')
	@base=$$(mktemp -d); trap 'git worktree remove --force "$$base"' EXIT; git worktree add -q --detach "$$base" $(BASE); \
	.bin/shopbench gate --base "$$base" $(value GATE)

.PHONY: fuzz
fuzz: .bin/shopdev ## Send nonsense to every call and decoder, each for FUZZ_DURATION (1m); what breaks one is kept in testdata/fuzz
	@for target in $$(grep -rhoE '^func Fuzz\w+' --include=fuzz_test.go gateway platform services | sed 's/func //'); do \
	    package=$$(dirname "$$(grep -rlE "^func $$target\(" --include=fuzz_test.go gateway platform services)"); \
	    echo "$$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime "$${FUZZ_DURATION:-1m}" "./$$package"; \
	done
	@FUZZ_DURATION=$${FUZZ_DURATION:-1m} .bin/shopdev exec --fast -- go test -v -run '^TestFuzz_' -count=1 -timeout=24h ./e2e | \
	    tee .bin/fuzz.log | grep -E '^(--- |ok|FAIL|panic)|_test.go:[0-9]+:'

.PHONY: screenshots
screenshots: .bin/shopdev ## Take the pictures of the front page in docs/images again (needs Chromium)
	@mkdir -p docs/images
	@SCREENSHOTS="$(CURDIR)/docs/images" .bin/shopdev exec --fast -- go test -run '^TestPage_FitsEveryScreen$$' -count=1 ./e2e >/dev/null
	@ls -l docs/images

# --- Change ----------------------------------------------------------------------------------------------------------

.PHONY: generate
generate: .bin/buf ## Write gen/ from proto/, and what follows (BECAUSE='reason' to break what the contracts promised)
	.bin/buf format -w proto
	.bin/buf lint
	rm -rf $(filter gen/%,$(GENERATED))
	.bin/buf generate
	go run ./topology/generate .
	GOWORK=off go -C tools/dashboards run . "$(CURDIR)/deploy/grafana/dashboards"
	@.bin/buf build -o .bin/contracts.binpb && go run ./e2e/compat/promises -because $(call quoted,BECAUSE) .bin/contracts.binpb

.PHONY: protos
protos: ## Write third_party/proto/ from the Go modules that carry those definitions
	rm -rf third_party/proto
	GOWORK=off go -C tools/protos run . "$(CURDIR)/third_party/proto"

.PHONY: format
format: .bin/buf .bin/golangci-lint ## Format contracts and code
	.bin/buf format -w proto
	.bin/golangci-lint fmt $(LINTED)

.PHONY: tidy
tidy: ## Bring all modules to the same versions, and each go.mod up to date, with the folders of our modules that it needs
	@for module in $(MODULES); do \
	    for other in $(MODULES); do \
	        from=$${module#./}/ to=$${other#./}/; \
	        while [[ -n $$from && $${from%%/*} == "$${to%%/*}" ]]; do from=$${from#*/} to=$${to#*/}; done; \
	        folder=$$(sed 's|[^/]*/|../|g' <<<"$$from")$$to; folder=$${folder%/}; [[ $$folder == ..* ]] || folder=./$$folder; \
	        [[ $$other == "$$module" ]] || go mod edit -replace="shop.example/$${other#./}=$$folder" "$$module/go.mod"; \
	    done; \
	done
	go work sync
	@# Twice: what a module needs of others is known when they are tidy.
	for module in $(MODULES) $(MODULES) $(TOOLS); do GOWORK=off go -C "$$module" mod tidy; done
	@for module in $(MODULES); do \
	    sed -i.before 's/ v0\.0\.0-00010101000000-000000000000/ v0.0.0/' "$$module/go.mod"; rm "$$module/go.mod.before"; \
	    needed=$$(GOWORK=off go -C "$$module" list -m -f '{{if .Replace}}{{.Path}}{{end}}' all); \
	    for other in $$(go list -m); do \
	        grep -qx "$$other" <<<"$$needed" || go mod edit -dropreplace="$$other" "$$module/go.mod"; \
	    done; \
	done

.PHONY: outdated
outdated: ## List direct dependencies that have a newer version, those of tools/* too
	@for module in $(MODULES) $(TOOLS); do \
	    cd "$(CURDIR)/$$module"; \
	    GOWORK=off go list -m -f '{{if not (or .Main .Indirect .Replace)}}{{.Path}}{{end}}' all | xargs -r env GOWORK=off go list -m -u -f '{{with .Update}}{{$$.Path}} {{$$.Version}} {{.Version}}{{end}}'; \
	done | sort -u | awk 'NF { printf "%-60s %s -> %s\n", $$1, $$2, $$3 }'

.PHONY: update
update: ## Set the version of a dependency in every module that requires it: make update MODULE=google.golang.org/grpc@v1.85.0
	@$(if $(value MODULE),,$(error Say which: make update MODULE=google.golang.org/grpc@v1.85.0))\
	for module in $(MODULES) $(TOOLS); do \
	    if grep -q '[[:space:]]$(firstword $(subst @, ,$(MODULE))) v' "$$module/go.mod"; then GOWORK=off go -C "$$module" get '$(MODULE)'; fi; \
	done
	@$(MAKE) tidy

.PHONY: clean
clean: ## Remove what was built (make down removes what runs)
	rm -rf .bin

# --- Release ---------------------------------------------------------------------------------------------------------

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: images
images: ## Build the images (VERSION=v1.2.3), and push them (IMAGES=registry/path/ PUSH=yes)
	@set -x; for service in $(SERVICES); do \
	    docker build $(if $(PUSH),--push) --build-arg SERVICE=$$service --build-arg VERSION=$(VERSION) -t $(IMAGES)shop-$$service:$(VERSION) .; \
	done; \
	docker build $(if $(PUSH),--push) --target shop --build-arg VERSION=$(VERSION) -t $(IMAGES)shop:$(VERSION) .

# What gives an image to the nodes of the cluster, for example KUBE_LOAD='kind load docker-image'. Docker Desktop needs nothing.
KUBE_LOAD ?= true
KUBE_SECRETS = deploy/kubernetes/try/secrets

.PHONY: kube
kube: .bin/shop ## Run the shop on the current Kubernetes context, in namespace shop, and place the sample order (docs/kubernetes.md)
	@mkdir -p $(KUBE_SECRETS)
	@.bin/shop secrets --file $(KUBE_SECRETS)/shop.env
	@.bin/shop certs --dir $(KUBE_SECRETS)/certs
	@$(MAKE) --no-print-directory images VERSION=try
	@for image in shop $(SERVICES:%=shop-%); do $(KUBE_LOAD) $$image:try; done
	@kubectl -n shop delete job setup --ignore-not-found # a job cannot be changed
	kubectl apply -k deploy/kubernetes/try
	kubectl -n shop wait --for=condition=complete --timeout=10m job/setup
	@for service in $(SERVICES); do kubectl -n shop rollout status --timeout=10m deployment/$$service; done
	deploy/kubernetes/try/order.sh .bin/shop

CONTRACTS = .bin/contracts

.PHONY: contracts
contracts: .bin/buf ## Write the contracts for clients in any language, in .bin/contracts and as a .tar.gz (VERSION=v1.2.3)
	@rm -rf $(CONTRACTS) .bin/shop-contracts-*.tar.gz && mkdir -p $(CONTRACTS)/proto
	@cp -r proto/shop $(CONTRACTS)/proto
	@GOWORK=off go -C tools/protos run . -all "$(CURDIR)/$(CONTRACTS)/proto"
	@.bin/buf build -o $(CONTRACTS)/shop.binpb
	@cp -r e2e/testdata/events LICENSE gen/openapi/shop.openapi.json gen/asyncapi/shop.asyncapi.yaml $(CONTRACTS)
	@GOWORK=off go -C tools/contracts run . '$(VERSION)' "$(CURDIR)/$(CONTRACTS)"
	@echo '$(CONTRACTS) and .bin/shop-contracts-$(VERSION).tar.gz'

.PHONY: artefacts
artefacts: sbom contracts ## Gather what a release consists of besides its images, in .bin/release (VERSION=v1.2.3)
	@rm -rf .bin/release && mkdir -p .bin/release
	@cp $(CONTRACTS)/shop.binpb $(CONTRACTS)/shop.openapi.json $(CONTRACTS)/shop.asyncapi.yaml .bin/shop-contracts-$(VERSION).tar.gz \
	    topology/definitions.json .bin/sbom/*.cdx.json .bin/sbom/licences.txt LICENSE .bin/release/
	@echo '$(VERSION)' > .bin/release/VERSION
	@cd .bin/release && $$(command -v sha256sum || echo shasum -a 256) -- * > SHA256SUMS && cat SHA256SUMS

# --- Programs --------------------------------------------------------------------------------------------------------

# shop is for people and operators, shopdev for a developer's machine, shopbench measures.
.bin/shop: package = ./shop
.bin/shopdev: package = ./dev
.bin/shopbench: package = ./bench
.bin/shop .bin/shopdev .bin/shopbench: always
	@[[ -e $@ ]] || echo 'building $@ (about a minute the first time)'
	@go build -o $@ $(package)

# Each developer tool is the one `tool` of a module of its own, which pins it; a new version means a new build.
.bin/%: tools/%/go.mod tools/%/go.sum
	@echo 'building $@ (a minute or two)'
	@GOWORK=off go -C tools/$* build -o "$(CURDIR)/$@" tool
	@touch $@

.PHONY: always
always:
