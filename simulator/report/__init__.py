"""What people see of a study: tables, plain words, figures, timelines. Import the module you need;
only `figures` loads matplotlib."""
