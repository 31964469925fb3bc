#!/bin/sh
# The generated code is compiled with pom.xml here: that of the generator builds a library to publish, and needs many plugins.
set -eu
python3 -m venv venv
venv/bin/pip install --quiet openapi-generator-cli==7.26.0
venv/bin/openapi-generator-cli generate -i "$OPENAPI" -g java --library native -o generated \
    --additional-properties=invokerPackage=shop.client,apiPackage=shop.client.api,modelPackage=shop.client.model >generator.log 2>&1 ||
    { cat generator.log; exit 1; }
cp "$CLIENT/pom.xml" .
mvn --quiet --batch-mode dependency:build-classpath -Dmdep.outputFile=classpath
find generated/src/main/java -name '*.java' >sources
javac -nowarn -d classes -cp "$(cat classpath)" @sources "$CLIENT/Client.java" 2>javac.log || { cat javac.log; exit 1; }
java -ea -cp "classes:$(cat classpath)" Client
